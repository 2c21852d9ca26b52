/** A transcript as text and as captions, to copy and to save. */

const LONGEST = 42;
/** Characters of a caption. */
const SECONDS = 6;
/** A caption lasts no longer. */
const PAUSE = 1;
/** Seconds of silence after which another caption begins. */

/** @typedef {import("./alignment.js").Word} Word */

/** @type {Record<string, {type: string, write: (words: Word[]) => string}>} by the ending of a file's name */
export const FORMATS = {
  txt: { type: "text/plain", write: (words) => `${plainText(words)}\n` },
  srt: {
    type: "application/x-subrip",
    write: (words) =>
      captions(words)
        .map(({ start, end, text }, index) => `${index + 1}\n${stamp(start, ",")} --> ${stamp(end, ",")}\n${text}\n`)
        .join("\n"),
  },
  vtt: {
    type: "text/vtt",
    write: (words) =>
      `WEBVTT\n\n${captions(words)
        .map(({ start, end, text }) => `${stamp(start, ".")} --> ${stamp(end, ".")}\n${text}\n`)
        .join("\n")}`,
  },
};

/** @param {Word[]} words */
export function plainText(words) {
  return words.map(({ text }) => text).join(" ");
}

/** @param {Word[]} words @returns {{start: number, end: number, text: string}[]} */
export function captions(words) {
  const found = [];
  for (const { text, start, end } of words) {
    const last = found.at(-1);
    const fits =
      last && last.text.length + 1 + text.length <= LONGEST && end - last.start <= SECONDS && start - last.end < PAUSE;
    if (fits) Object.assign(last, { text: `${last.text} ${text}`, end });
    else found.push({ start, end, text });
  }
  return found;
}

/** Offers a transcript as a file. */
export function save(words, format, name) {
  const { type, write } = FORMATS[format];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(words)], { type }));
  link.download = `${name.replace(/\.[^.]*$/, "") || "transcript"}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function stamp(seconds, point) {
  const whole = Math.round(1000 * seconds);
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const rest = String(whole % 1000).padStart(3, "0");
  return `${two(whole / 3_600_000)}:${two((whole / 60_000) % 60)}:${two((whole / 1000) % 60)}${point}${rest}`;
}
