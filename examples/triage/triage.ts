/** What a triage is: the strict JSON that the model has to answer with. */
import { z } from "zod";

export const products = ["billing", "login", "mobile", "export", "api"] as const;
export const urgencies = ["low", "medium", "high"] as const;
export const languages = ["en", "de", "fr"] as const;
export type Language = (typeof languages)[number];
export type Urgency = (typeof urgencies)[number];

/** Key order is part of the answer: a model writes it from left to right. */
export const triageSchema = z.strictObject({
  product: z.enum(products),
  urgency: z.enum(urgencies),
  language: z.enum(languages),
  summary: z.string().min(1).max(120).describe("English, one line"),
});
export type Triage = z.infer<typeof triageSchema>;
export const triageFields = ["product", "urgency", "language", "summary"] as const satisfies readonly (keyof Triage)[];

/** What can go wrong, and its one English summary. Slots in braces are filled with what the message says. */
export const issues = {
  charged_twice: { product: "billing", summary: "Charged twice on {card}" },
  wrong_amount: { product: "billing", summary: "Wrong amount on invoice {number}" },
  refund_missing: { product: "billing", summary: "Refund missing after {days} days" },
  reset_mail: { product: "login", summary: "Password reset mail does not arrive" },
  second_factor: { product: "login", summary: "Two-factor code is rejected" },
  locked: { product: "login", summary: "Account locked after {times} attempts" },
  crash: { product: "mobile", summary: "App crashes on {device}" },
  no_push: { product: "mobile", summary: "No notifications on {device}" },
  battery: { product: "mobile", summary: "App drains battery of {device}" },
  empty_export: { product: "export", summary: "{format} export is empty" },
  bad_characters: { product: "export", summary: "Broken characters in {format} export" },
  schedule: { product: "export", summary: "Scheduled {format} export did not run" },
  api_error: { product: "api", summary: "API returns error {code}" },
  api_key: { product: "api", summary: "API key is refused" },
  webhook: { product: "api", summary: "Webhook delivered {times} times" },
} as const satisfies Record<string, { product: Triage["product"]; summary: string }>;
export type IssueId = keyof typeof issues;

export const slots: Record<string, readonly string[]> = {
  card: ["Visa", "Mastercard", "PayPal", "Amex"],
  number: ["104", "218", "377", "451", "596", "632", "780", "849", "913"],
  days: ["5", "7", "9", "10", "12", "14", "20", "30"],
  times: ["3", "4", "5", "6", "8", "10"],
  device: ["iPhone", "iPad", "Pixel", "Galaxy", "Fairphone"],
  format: ["CSV", "PDF", "Excel", "JSON", "XML"],
  code: ["400", "403", "404", "429", "500", "502", "503"],
  name: ["Ada", "Bruno", "Chiara", "Deniz", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas"],
};

export const systemPrompt = "Triage as JSON: product, urgency, language, summary.";
