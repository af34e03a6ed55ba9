/** Means with their 95 % intervals, by Student's t. Pure. */

/** Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom. */
const quantiles = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11,
  2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
];

export interface Summary {
  mean: number;
  /** Of the values, with n - 1. */
  std: number;
  /** 95 %, of the mean. */
  interval: [number, number];
}

/** Null for fewer than two values: they show no spread. Needs at most 31. */
export function summarize(values: readonly number[]): Summary | null {
  const count = values.length;
  if (count < 2) return null;
  const mean = values.reduce((sum, value) => sum + value, 0) / count;
  const std = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (count - 1));
  const half = ((quantiles[Math.min(count - 1, quantiles.length) - 1] ?? 0) * std) / Math.sqrt(count);
  return { mean, std, interval: [mean - half, mean + half] };
}
