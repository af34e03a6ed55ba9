/**
 * Canonical rows: what ingest writes and the trainer reads, one JSON object a line, UTF-8, no BOM.
 * `line` is the 1-based line of the original file, so that every later word about a row can name it.
 */
import { z } from "zod";

export const roleSchema = z.enum(["system", "developer", "user", "assistant", "tool", "function"]);

export const chatMessageSchema = z.object({
  role: roleSchema,
  content: z.string().nullable(),
  name: z.string().optional(),
  weight: z.union([z.literal(0), z.literal(1)]).optional(),
  tool_calls: z.array(z.unknown()).optional(),
  tool_call_id: z.string().optional(),
});
export type ChatMessage = z.infer<typeof chatMessageSchema>;

export const chatRowSchema = z.object({
  line: z.number().int(),
  messages: z.array(chatMessageSchema),
  tools: z.array(z.unknown()).optional(),
  group: z.string().optional(),
});
export const classificationRowSchema = z.object({
  line: z.number().int(),
  text: z.string(),
  text_pair: z.string().optional(),
  label: z.string(),
  group: z.string().optional(),
});
export const pairRowSchema = z.object({
  line: z.number().int(),
  prompt: z.string(),
  completion: z.string(),
  group: z.string().optional(),
});

/** Any number of labels. */
export const multilabelRowSchema = z.object({
  line: z.number().int(),
  text: z.string(),
  text_pair: z.string().optional(),
  labels: z.array(z.string()),
  group: z.string().optional(),
});
export const scoreRowSchema = z.object({
  line: z.number().int(),
  text: z.string(),
  text_pair: z.string().optional(),
  score: z.number(),
  group: z.string().optional(),
});
/** Two texts, the better one first. */
export const rankingRowSchema = z.object({
  line: z.number().int(),
  prompt: z.string().optional(),
  chosen_text: z.string(),
  rejected_text: z.string(),
  group: z.string().optional(),
});
/** `start` and `end` count characters (code points, not UTF-16 units) from 0; `end` is outside. */
export const entitySchema = z.object({ start: z.number().int(), end: z.number().int(), label: z.string() });
export const entityRowSchema = z.object({
  line: z.number().int(),
  text: z.string(),
  entities: z.array(entitySchema),
  group: z.string().optional(),
});
/** `start` counts characters of the context, as above. No answer: the context does not hold one. */
export const answerRowSchema = z.object({
  line: z.number().int(),
  question: z.string(),
  context: z.string(),
  answers: z.array(z.object({ start: z.number().int(), text: z.string() })),
  group: z.string().optional(),
});
/** Texts that belong together, and one that does not. */
export const similarityRowSchema = z.object({
  line: z.number().int(),
  anchor: z.string(),
  positive: z.string(),
  negative: z.string().optional(),
  group: z.string().optional(),
});
/** Two answers to one conversation. */
export const preferenceRowSchema = z.object({
  line: z.number().int(),
  messages: z.array(chatMessageSchema),
  tools: z.array(z.unknown()).optional(),
  preferred: z.array(chatMessageSchema),
  non_preferred: z.array(chatMessageSchema),
  group: z.string().optional(),
});
/** A document. */
export const textRowSchema = z.object({
  line: z.number().int(),
  text: z.string(),
  group: z.string().optional(),
});

export type ChatRow = z.infer<typeof chatRowSchema>;
export type ClassificationRow = z.infer<typeof classificationRowSchema>;
export type PairRow = z.infer<typeof pairRowSchema>;
export type MultilabelRow = z.infer<typeof multilabelRowSchema>;
export type ScoreRow = z.infer<typeof scoreRowSchema>;
export type RankingRow = z.infer<typeof rankingRowSchema>;
export type Entity = z.infer<typeof entitySchema>;
export type EntityRow = z.infer<typeof entityRowSchema>;
export type AnswerRow = z.infer<typeof answerRowSchema>;
export type SimilarityRow = z.infer<typeof similarityRowSchema>;
export type PreferenceRow = z.infer<typeof preferenceRowSchema>;
export type TextRow = z.infer<typeof textRowSchema>;
export type CanonicalRow =
  | ChatRow
  | ClassificationRow
  | PairRow
  | MultilabelRow
  | ScoreRow
  | RankingRow
  | EntityRow
  | AnswerRow
  | SimilarityRow
  | PreferenceRow
  | TextRow;

/** What the rows of a file are. `pair` trains a seq2seq model, or a decoder as completion. */
export const rowKindSchema = z.enum([
  "chat",
  "classification",
  "pair",
  "multilabel",
  "score",
  "ranking",
  "entities",
  "answers",
  "similarity",
  "preference",
  "text",
]);
export type RowKind = z.infer<typeof rowKindSchema>;
