/** A part of a whole with its 95 % interval (Wilson's score interval, E. B. Wilson, 1927). Pure. */
export interface Share {
  value: number;
  interval: [number, number];
}

const z95 = 1.959963984540054;

export function share(numRight: number, numAll: number): Share {
  if (numAll === 0) return { value: 0, interval: [0, 1] };
  const value = numRight / numAll;
  const centre = value + z95 ** 2 / (2 * numAll);
  const spread = z95 * Math.sqrt((value * (1 - value)) / numAll + z95 ** 2 / (4 * numAll ** 2));
  const scale = 1 + z95 ** 2 / numAll;
  return { value, interval: [Math.max(0, (centre - spread) / scale), Math.min(1, (centre + spread) / scale)] };
}

/** `93.0 % [90.1, 95.2]` */
export function percent({ value, interval: [low, high] }: Share): string {
  return `${(100 * value).toFixed(1)} % [${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]`;
}
