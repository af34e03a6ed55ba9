import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { readMail } from "../../examples/data/mail.js";
import { packageFiles } from "../../examples/data/npm-package.js";
import {
  convertMails,
  maxTextLength,
  type RawMail,
  withoutFooter,
  withoutListTags,
} from "../../examples/spam/convert.js";
import { splitMails } from "../../examples/spam/split.js";

const plain = (subject: string, body: string, label: RawMail["label"] = "ham"): RawMail => ({
  label,
  text: `From someone@example.org  Thu Aug 22 2002\nReceived: by host\n\twith SMTP\nSubject: ${subject}\nX-Spam: no\n\n${body}\n`,
});
const words = (start: number, count: number): string =>
  Array.from(
    { length: count },
    (_, at) => `word${String.fromCharCode(97 + ((start + at) % 26))}${"x".repeat((start + at) % 7)}`,
  ).join(" ");

describe("mails become rows", () => {
  it("keeps subject and body, and takes off headers, list tags, footers and addresses", () => {
    const body = `Write to ada@example.org or see http://example.org/x?y=1.\n\n_______________________________\nILUG mailing list\nhttp://lists.example.org`;
    const [row] = convertMails([plain("Re: [ILUG] Fwd: A question about mail", body)]);
    expect(row).toEqual({ text: "A question about mail\nWrite to EMAIL or see URL", label: "ham", group: "g0" });
  });

  it("reads quoted-printable, base64, HTML and the plain part of several", () => {
    expect(
      readMail("Subject: =?iso-8859-1?Q?caf=E9?=\nContent-Transfer-Encoding: quoted-printable\n\nna=EFve =\nline")
        .subject,
    ).toBe("café");
    expect(readMail("Content-Transfer-Encoding: quoted-printable\n\nna=EFve =\nline").body).toBe("naïve line");
    expect(readMail(`Content-Transfer-Encoding: base64\n\n${Buffer.from("hidden text").toString("base64")}`).body).toBe(
      "hidden text",
    );
    expect(readMail("Content-Type: text/html\n\n<style>p{}</style><p>Fish &amp; chips&#33;</p>").body).toBe(
      "Fish & chips!",
    );
    const multi =
      'Content-Type: multipart/alternative; boundary="b1"\n\n--b1\nContent-Type: text/html\n\n<b>no</b>\n--b1\nContent-Type: text/plain\n\nyes\n--b1--\n';
    expect(readMail(multi).body).toBe("yes");
  });

  it("leaves out duplicates and mails without text, and bounds the length", () => {
    const long = words(0, 400);
    const rows = convertMails([plain("Long subject here", long), plain("Long subject here", long), plain("", "")]);
    expect(rows).toHaveLength(1);
    expect(rows[0]?.text.length).toBeLessThanOrEqual(maxTextLength);
  });

  it("puts threads and near copies into one group, and others apart", () => {
    const rows = convertMails([
      plain("Kernel will not build", "It stops at the first file."),
      plain("Re: [list] Kernel will not build", "Did you clean the tree before?"),
      plain("Offer 1", `Dear friend ${words(3, 60)} order 123`, "spam"),
      plain("Offer 2", `Hello there ${words(3, 60)} order 999`, "spam"),
      plain("Lunch on Friday perhaps", "Who comes along to the usual place?"),
    ]);
    const [build, reply, offer, copy, lunch] = rows.map((row) => row.group);
    expect(reply).toBe(build);
    expect(copy).toBe(offer);
    expect(new Set([build, offer, lunch]).size).toBe(3);
  });

  it("strips list tags and footers in linear time", () => {
    expect(withoutListTags("Re[2]: [Spambayes] AW: hello")).toBe("hello");
    const body = `${"a\n".repeat(200_000)}no footer`;
    expect(withoutFooter(body)).toBe(body);
  });
});

it("splits by group with the same share of spam, and refuses what is not there", () => {
  const mails = Array.from({ length: 300 }, (_, at) =>
    plain(
      `Subject number ${words(at, 3)} ${words(at * 7, 2)}`,
      `${words(at * 11, 5)} ${at}`,
      at % 3 === 0 ? "spam" : "ham",
    ),
  );
  const rows = convertMails(mails);
  const size = { seed: 3, numTrain: 80, numTest: 30 };
  const { train, test } = splitMails(rows, size);
  expect(splitMails(rows, size)).toEqual({ train, test });
  const trained = new Set(train.map((row) => row.group));
  expect(test.filter((row) => trained.has(row.group))).toEqual([]);
  for (const part of [train, test])
    expect(part.filter((row) => row.label === "spam").length / part.length).toBeCloseTo(1 / 3, 0);
  expect(() => splitMails(rows, { ...size, numTest: 10_000 })).toThrow("Asked for 10000 mails");
});

it("reads a package's files, and tells a cut archive", () => {
  const header = Buffer.alloc(512);
  header.write("package/data/a.json", 0);
  header.write("00000000003", 124);
  header.write("0", 156);
  const archive = Buffer.concat([header, Buffer.from("{}\n"), Buffer.alloc(509), Buffer.alloc(1024)]);
  expect(
    [...packageFiles(gzipSync(archive), (path) => path === "data/a.json")].map(({ path, content }) => [
      path,
      content.toString(),
    ]),
  ).toEqual([["data/a.json", "{}\n"]]);
  expect(() => [...packageFiles(gzipSync(archive.subarray(0, 513)), () => true)]).toThrow("cut off");
});
