/** House rules that need only a file's name or text. Each returns a list of `path:line what is wrong`. */

const vagueNames = /(^|[-_.])(utils?|helpers?|common|managers?|services?|misc)([-_.]|$)/i;

export function names(file) {
  const parts = file.path.split("/");
  const vague = parts.find((part) => vagueNames.test(part));
  return file.isCode && vague !== undefined
    ? [`${file.path}:1 "${vague}" names no idea: use the noun of what is inside`]
    : [];
}

/** Every match of `pattern` in code outside of this list of rules. */
function matches(file, pattern, message) {
  return [...file.text.matchAll(pattern)].map((match) => file.at(match.index, message(match[0])));
}

const isRule = (file) => /^(scripts\/check|tests\/house\/)/.test(file.path);

const pickleImport = /^\s*(?:import|from) (?:pickle|cPickle|dill|joblib|cloudpickle|marshal|shelve)\b/gm;
const pythonCalls = [
  [
    /\b(?:pickle|marshal|dill|joblib|cloudpickle)\.(?:load|loads|Unpickler)\b/g,
    "unpickling runs code of the file's maker",
  ],
  [pickleImport, "unpickling runs code of the file's maker: use safetensors or JSON"],
  [/\btorch\.(?:load|save)\(/g, "torch.load and torch.save pickle: use safetensors"],
  [/\byaml\.(?:load|unsafe_load|full_load)\(/g, "yaml.load makes objects the file asks for"],
  [/(?<![\w.])(?:eval|exec)\(/g, "eval runs text as code"],
  [/\bshell\s*=\s*True\b/g, "shell=True lets a shell parse the text: pass a list"],
  [/\bos\.(?:system|popen)\(/g, "os.system lets a shell parse the text: use subprocess with a list"],
  [/\ballow_pickle\s*=\s*True\b/g, "allow_pickle runs code of the file's maker"],
];

export function forbidden(file) {
  if (!file.isCode || isRule(file)) return [];
  const found = matches(
    file,
    /\btrust_?[rR]emote_?[cC]ode\s*[=:]\s*(?:True|true)\b/g,
    () => "trust_remote_code runs code of the model's maker",
  );
  // A test may write a pickle, to prove that it is refused; nobody may read one.
  const rules = pythonCalls.filter(([pattern]) => !(file.isTest && pattern === pickleImport));
  if (file.isPython)
    for (const [pattern, message] of rules)
      found.push(...matches(file, pattern, (text) => `${text.trim()}: ${message}`));
  return found;
}

export function promises(file) {
  if (!file.isCode || isRule(file)) return [];
  return [
    ...matches(
      file,
      /(?:\/\/|#|\/?\*)[^\n]*\b(?:TODO|FIXME|XXX|HACK)\b/g,
      () => "an unkept promise: do it, or file an issue",
    ),
    ...matches(
      file,
      /@ts-(?:ignore|nocheck)\b/g,
      (text) => `${text} hides every error of the line: use @ts-expect-error with the reason`,
    ),
    ...matches(
      file,
      /# *(?:type|pyright): *ignore(?!\[)/g,
      () => "an ignore without the rule it ignores in [brackets]",
    ),
    ...matches(file, /@pytest\.mark\.(?:skip|xfail)\b(?!\w)(?![^\n]*reason=)/g, (text) => `${text} without reason=`),
  ];
}

/** Addresses and folders of one machine have no meaning on another. */
const machine = [
  [/(?<![\w.])\/(?:work|tmp\/lab|home\/[a-z]+|Users\/[A-Za-z]+)\/[\w.]/g, "a path of one machine"],
  [
    /https?:\/\/(?:registry\.npmjs\.org|pypi\.org\/simple|files\.pythonhosted\.org|[\w.-]*(?:artifactory|nexus|mirror|codeartifact)[\w.-]*)/g,
    "the address of a package registry",
  ],
  [/^\s*(?:--(?:extra-)?index-url|registry\s*=|index-url\s*=)/gm, "the address of a package registry"],
];

export function machines(file) {
  if (isRule(file)) return [];
  if (!file.isProse && !["", ".lock", ".in", ".npmrc"].includes(file.extension)) return [];
  return machine.flatMap(([pattern, message]) => matches(file, pattern, (text) => `${text.trim()}: ${message}`));
}
