/** File name -> text of each file in docs/schemas. */
export function schemaFiles(): Record<string, string>;
