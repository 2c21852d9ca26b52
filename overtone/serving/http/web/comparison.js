/** What the base and the adapter heard, beside each other: two transcripts and the timeline between them. */

import { compare } from "./alignment.js";
import { wordAt } from "./timeline.js";
import { Transcript } from "./transcript.js";

const SLACK = 0.06;
/** Seconds that a word stays lit after its end. */

/** What stands in the place of words. */
const OTHERWISE = {
  idle: "Choose a recording, or speak.",
  waiting: "Transcribing …",
  listening: "Listening …",
  failed: "No transcript.",
  done: "Nothing was heard.",
  without: "No adapter is in service yet. One that lands in the server's folder of adapters can be chosen here.",
};

export class Comparison {
  /**
   * @param {HTMLElement[]} elements of the base's transcript and of the adapter's
   * @param {import("./timeline.js").Timeline} timeline
   * @param {(word: import("./alignment.js").Word) => void} play
   */
  constructor(elements, timeline, play) {
    this.timeline = timeline;
    this.sides = elements.map(() => ({ words: [], provisional: "", state: "idle" }));
    this.elements = elements;
    this.lanes = [];
    /** What was said, where that is known; else empty. @type {string[]} */
    this.said = [];
    this.transcripts = elements.map(
      (element, side) => new Transcript(element, { play, point: (index) => this.point(side, index) }),
    );
    this.redraw();
  }

  /** @param {number} side 0: the base, 1: the adapter. @param {object} what words, provisional, state */
  set(side, what) {
    Object.assign(this.sides[side], what);
    this.redraw();
  }

  /** Tell what was said; an empty text for what nobody knows. */
  expect(text) {
    this.said = text.split(/\s+/).filter(Boolean);
  }

  /** How many of the words that were said each side has right; null where that is not known, or not yet. */
  get score() {
    if (!this.said.length || !this.settled) return null;
    return this.sides.map(({ words }) => this.said.length - wrongs(this.said, words).missed);
  }

  get settled() {
    return this.sides.every(({ state }) => state === "done");
  }

  /** Whether the server is still asked for one of them. */
  get waiting() {
    return this.sides.some(({ state }) => state === "waiting");
  }

  /** How many words differ; null while one side is not there yet. */
  get differences() {
    return this.settled ? this.compared.differences : null;
  }

  redraw() {
    const [left, right] = this.sides.map(({ words, provisional }) => [
      ...words,
      ...provisional.split(/\s+/).filter(Boolean).map((text) => ({ text })),
    ]);
    const both = this.sides.every(({ state }) => state === "done" || state === "listening");
    this.compared = both ? compare(left, right, this.settled) : { left: plain(left), right: plain(right), differences: 0 };
    const compared = [this.compared.left, this.compared.right];
    this.lanes = this.sides.map(({ words }, side) => ({ words, marks: compared[side].marks, current: -1 }));
    this.sides.forEach(({ words, provisional, state }, side) => {
      const marked = { marks: compared[side].marks, gaps: settledGaps(compared[side].gaps, words, provisional) };
      const wrong = this.said.length && state === "done" ? wrongs(this.said, words).heard : new Set();
      this.transcripts[side].show(words, marked, provisional, OTHERWISE[state], wrong);
      this.elements[side].ariaBusy = String(state === "waiting");
    });
    this.timeline.show(this.lanes);
  }

  /** Lights the words that are heard now. */
  at(seconds, playing) {
    this.lanes.forEach((lane, side) => {
      lane.current = playing ? wordAt(lane.words, seconds, SLACK) : -1;
      this.transcripts[side].highlight(lane.current);
    });
  }

  point(side, index) {
    const mark = this.lanes[side]?.marks[index];
    this.transcripts[1 - side]?.point(mark && !mark.same ? mark.partner : -1);
  }
}

/** The words that were heard wrongly, by index, and how many of those said were missed. */
function wrongs(said, words) {
  const { left, right } = compare(said.map((text) => ({ text })), words);
  const heard = new Set(words.map((_, index) => index).filter((index) => !right.marks[index].same));
  return { heard, missed: said.length - left.marks.filter(({ same, partner }) => same && partner >= 0).length };
}

function plain(words) {
  return { marks: words.map(() => ({ same: true, partner: -1 })), gaps: new Map() };
}

/** Without those among words that may still change. */
function settledGaps(gaps, words, provisional) {
  return provisional ? new Map([...gaps].filter(([index]) => index < words.length)) : gaps;
}
