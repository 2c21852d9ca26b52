/** Two transcripts of the same audio, word by word: which words are the same, which differ, which are missing. */

/**
 * @typedef {{text: string, start?: number, end?: number, confidence?: number}} Word
 *   times in seconds; a word without them is not settled yet
 * @typedef {{same: boolean, partner: number}} Mark partner: index on the other side, -1 for none
 * @typedef {{marks: Mark[], gaps: Map<number, string>}} Side
 *   gaps: the words that the other side has before the word of this index (its length: at the end)
 */

const PART = 240;
/** Words that are aligned at a time: the cost grows with the square. */
const AROUND = 24;
/** Words around the end of a part among which the longest pause is looked for. */
const NEAR = 0.4;
/** Seconds between two words that may still be the same one. */
const UNPAIRED = 0.75;
const REPLACED = 1;
const APART = 1.6;
/** Dearer than leaving both words unpaired. */

/**
 * @param {Word[]} left
 * @param {Word[]} right
 * @param {boolean} settled false while words are still to come: what follows the last common word is left unmarked
 * @returns {{left: Side, right: Side, differences: number}}
 *   differences: words that were replaced, left out or added
 */
export function compare(left, right, settled = true) {
  const pairs = align(left, right);
  const last = settled ? pairs.length - 1 : pairs.findLastIndex(([i, j]) => same(left, right, i, j));
  const sides = [blank(left.length), blank(right.length)];
  let differences = 0;
  let [i, j] = [0, 0];
  for (const [a, b] of pairs.slice(0, last + 1)) {
    const equal = same(left, right, a, b);
    if (!equal) differences += 1;
    if (a >= 0) sides[0].marks[a] = { same: equal, partner: b };
    else addGap(sides[0], i, right[b].text);
    if (b >= 0) sides[1].marks[b] = { same: equal, partner: a };
    else addGap(sides[1], j, left[a].text);
    i += a >= 0 ? 1 : 0;
    j += b >= 0 ? 1 : 0;
  }
  return { left: sides[0], right: sides[1], differences };
}

/** [index or -1, index or -1] for each pair, in order. */
export function align(left, right) {
  const pairs = [];
  let [i, j] = [0, 0];
  while (i < left.length || j < right.length) {
    const [nextI, nextJ] = cut(left, right, i, j);
    for (const [a, b] of alignPart(left.slice(i, nextI), right.slice(j, nextJ))) {
      pairs.push([a < 0 ? a : a + i, b < 0 ? b : b + j]);
    }
    [i, j] = [nextI, nextJ];
  }
  return pairs;
}

/** Where the part that begins at i and j ends on both sides: in a pause of the side with more words left. */
function cut(left, right, i, j) {
  if (right.length - j > left.length - i) {
    const [nextJ, nextI] = cut(right, left, j, i);
    return [nextI, nextJ];
  }
  if (left.length - i <= PART + AROUND) return [left.length, right.length];
  let best = i + PART;
  for (let index = best - AROUND; index < best + AROUND; index += 1) {
    if (pause(left, index) > pause(left, best)) best = index;
  }
  const time = (left[best - 1].end + left[best].start) / 2;
  let other = j;
  while (other < right.length && (right[other].start + right[other].end) / 2 < time) other += 1;
  return [best, other];
}

function pause(words, index) {
  return words[index].start - words[index - 1].end;
}

/** The cheapest alignment (Levenshtein), in which words that are far apart in time are no pair. */
function alignPart(left, right) {
  const width = right.length + 1;
  const costs = new Float32Array((left.length + 1) * width);
  for (let i = 0; i <= left.length; i += 1) {
    for (let j = 0; j <= right.length; j += 1) {
      if (i === 0 || j === 0) costs[i * width + j] = UNPAIRED * (i + j);
      else {
        costs[i * width + j] = Math.min(
          costs[(i - 1) * width + j - 1] + cost(left[i - 1], right[j - 1]),
          costs[(i - 1) * width + j] + UNPAIRED,
          costs[i * width + j - 1] + UNPAIRED,
        );
      }
    }
  }
  const pairs = [];
  let [i, j] = [left.length, right.length];
  const cheapest = (before, price) => Math.fround(before + price) === costs[i * width + j];
  while (i > 0 || j > 0) {
    if (i > 0 && j > 0 && cheapest(costs[(i - 1) * width + j - 1], cost(left[i - 1], right[j - 1]))) {
      pairs.push([--i, --j]);
      continue;
    }
    const leftAlone = i > 0 && cheapest(costs[(i - 1) * width + j], UNPAIRED);
    const rightAlone = j > 0 && cheapest(costs[i * width + j - 1], UNPAIRED);
    const leftLater = leftAlone && rightAlone && left[i - 1].start > right[j - 1].start;
    if (rightAlone && !leftLater) pairs.push([-1, --j]);
    else pairs.push([--i, -1]);
  }
  return pairs.reverse();
}

function cost(a, b) {
  const gap = Math.max(a.start - b.end, b.start - a.end); // NaN where a time is unknown: then nothing is far
  if (gap > NEAR) return APART;
  return a.text === b.text ? 0 : REPLACED;
}

function same(left, right, i, j) {
  return i >= 0 && j >= 0 && left[i].text === right[j].text;
}

function blank(length) {
  return { marks: Array.from({ length }, () => ({ same: true, partner: -1 })), gaps: new Map() };
}

function addGap(side, index, text) {
  side.gaps.set(index, side.gaps.has(index) ? `${side.gaps.get(index)} ${text}` : text);
}
