/** The waveform with both sides' words over and under it, along time. Only what is in view is drawn. */

import { PER_SECOND } from "./peaks.js";

const LANE = 34;
const WAVE = 96;
const TICKS = 20;
export const HEIGHT = 2 * LANE + WAVE + TICKS;
const LEAST_SCALE = 120;
const MOST_SCALE = 340;
/** Pixels of a second. */
const FONT = '13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
const COLOURS = ["ink", "muted", "rule", "mark", "series-0", "series-1", "head", "paper"];

export class Timeline {
  /**
   * @param {HTMLElement} element scrolls, and is the slider
   * @param {(seconds: number) => void} seek
   */
  constructor(element, seek) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.extent = element.querySelector(".extent");
    this.seek = seek;
    this.peaks = null;
    this.seconds = 0;
    this.position = 0;
    this.lanes = [];
    this.live = false;
    element.addEventListener("scroll", () => this.redraw());
    element.addEventListener("click", (event) => this.clicked(event));
    element.addEventListener("keydown", (event) => this.pressed(event));
    new ResizeObserver(() => this.redraw()).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** @param {{peaks: import("./peaks.js").Peaks | null, seconds: number, live: boolean}} what */
  load({ peaks, seconds, live }) {
    Object.assign(this, { peaks, seconds, live, position: 0 });
    this.element.scrollLeft = 0;
    this.element.ariaDisabled = String(live);
    this.redraw();
  }

  /** More was heard. */
  grow() {
    this.seconds = this.peaks.length / PER_SECOND;
    this.position = this.seconds;
    this.redraw(() => (this.element.scrollLeft = this.element.scrollWidth));
  }

  /** @param {{words: import("./alignment.js").Word[], marks: import("./alignment.js").Mark[], current: number}[]} lanes */
  show(lanes) {
    this.lanes = lanes;
    this.redraw();
  }

  moveTo(seconds, follow) {
    this.position = seconds;
    this.element.ariaValueNow = seconds.toFixed(2);
    this.element.ariaValueText = `${seconds.toFixed(1)} of ${this.seconds.toFixed(1)} seconds`;
    const x = seconds * this.scale();
    const { scrollLeft, clientWidth } = this.element;
    if (follow && (x < scrollLeft || x > scrollLeft + 0.85 * clientWidth)) {
      this.element.scrollLeft = x - 0.15 * clientWidth;
    }
    this.redraw();
  }

  scale() {
    if (this.live || !this.seconds) return LEAST_SCALE;
    return Math.min(MOST_SCALE, Math.max(LEAST_SCALE, this.element.clientWidth / this.seconds));
  }

  clicked(event) {
    if (this.live || !this.seconds) return;
    const box = this.element.getBoundingClientRect();
    const y = event.clientY - box.top;
    const time = (event.clientX - box.left + this.element.scrollLeft) / this.scale();
    const lane = y < LANE ? this.lanes[0] : y > LANE + WAVE && y < 2 * LANE + WAVE ? this.lanes[1] : undefined;
    const word = lane?.words[wordAt(lane.words, time, Infinity)];
    this.seek(Math.min(this.seconds, word ? word.start : time));
  }

  pressed(event) {
    if (this.live || !this.seconds || event.altKey || event.ctrlKey || event.metaKey) return;
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const places = { Home: 0, End: this.seconds };
    const place = places[event.key] ?? this.position + (steps[event.key] ?? NaN);
    if (Number.isNaN(place)) return;
    event.preventDefault();
    this.seek(Math.max(0, Math.min(this.seconds, place)));
  }

  /** @param {() => void} [then] called once the new width is known */
  redraw(then) {
    this.then = then ?? this.then;
    this.planned ||= requestAnimationFrame(() => {
      this.planned = 0;
      this.element.ariaValueMax = this.seconds.toFixed(2);
      this.extent.style.width = `${Math.round(this.seconds * this.scale())}px`;
      this.then?.();
      this.then = undefined;
      this.draw();
    });
  }

  draw() {
    const { clientWidth: width, scrollLeft } = this.element;
    const ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(HEIGHT * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(HEIGHT * ratio);
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${HEIGHT}px`;
    }
    const style = getComputedStyle(this.element);
    const colours = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, HEIGHT);
    const view = { pen, width, colours, scale: this.scale(), from: scrollLeft / this.scale() };
    drawTicks(view, this.seconds);
    drawWave(view, this.peaks, this.position);
    this.lanes.forEach((lane, index) => drawWords(view, lane, index));
    if (!this.live && this.seconds) drawHead(view, this.position);
  }
}

/** The last word that begins by then, unless it ended longer ago than the slack; -1 for none. */
export function wordAt(words, time, slack = 0) {
  let [low, high] = [0, words.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (words[middle].start <= time) low = middle + 1;
    else high = middle;
  }
  return low > 0 && time <= words[low - 1].end + slack ? low - 1 : -1;
}

function drawTicks({ pen, width, colours, scale, from }, seconds) {
  pen.font = `11px ${FONT.split("px ")[1]}`;
  pen.textBaseline = "middle";
  pen.textAlign = "left";
  const until = Math.min(seconds, from + width / scale);
  for (let second = Math.floor(from); second <= until; second += 1) {
    const x = (second - from) * scale;
    pen.fillStyle = colours.rule;
    pen.fillRect(Math.round(x), LANE, 1, WAVE + LANE + TICKS);
    pen.fillStyle = colours.muted;
    pen.fillText(clock(second), x + 4, HEIGHT - TICKS / 2);
  }
}

/** "1:05" */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function drawWave({ pen, width, colours, scale, from }, peaks, position) {
  const middle = LANE + WAVE / 2;
  pen.fillStyle = colours.rule;
  pen.fillRect(0, middle, width, 1);
  if (!peaks) return;
  const height = (0.46 * WAVE) / Math.max(0.1, peaks.loudest);
  const played = (position - from) * scale;
  for (let x = 0; x < width; x += 3) {
    const first = Math.floor((from + x / scale) * PER_SECOND);
    if (first >= peaks.length) break;
    const last = Math.max(first + 1, Math.floor((from + (x + 3) / scale) * PER_SECOND));
    let [low, high] = [0, 0];
    for (let index = first; index < Math.min(last, peaks.length); index += 1) {
      low = Math.min(low, peaks.low[index]);
      high = Math.max(high, peaks.high[index]);
    }
    pen.fillStyle = x < played ? colours.ink : colours["series-0"];
    pen.fillRect(x, middle - high * height, 2, Math.max(1, (high - low) * height));
  }
}

function drawWords({ pen, width, colours, scale, from }, { words, marks, current }, lane) {
  const top = lane === 0 ? 0 : LANE + WAVE;
  pen.font = FONT;
  pen.textBaseline = "middle";
  const first = Math.max(0, wordAt(words, from, Infinity));
  for (let index = first; index < words.length; index += 1) {
    const word = words[index];
    const x = (word.start - from) * scale;
    if (x > width) break;
    const room = ((words[index + 1]?.start ?? word.end + 1) - word.start) * scale - 5;
    const spoken = Math.max(2, (word.end - word.start) * scale);
    const bar = lane === 0 ? top + LANE - 5 : top + 2;
    pen.fillStyle = colours[`series-${lane}`];
    pen.globalAlpha = 0.25 + 0.75 * word.confidence;
    pen.fillRect(x, bar, spoken, 3);
    pen.globalAlpha = 1;
    const middle = lane === 0 ? top + 14 : top + LANE - 14;
    const text = fitted(pen, word.text, room);
    const wide = Math.min(room, pen.measureText(text).width);
    if (!marks[index]?.same || index === current) {
      pen.fillStyle = index === current ? colours.ink : colours.mark;
      pen.beginPath();
      pen.roundRect(x - 3, middle - 10, wide + 6, 20, 4);
      pen.fill();
    }
    pen.fillStyle = index === current ? colours.paper : colours.ink;
    pen.fillText(text, x, middle + 1);
  }
}

/** The text, or as much of it as there is room for. */
function fitted(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  let length = text.length - 1;
  while (length > 1 && pen.measureText(`${text.slice(0, length)}…`).width > room) length -= 1;
  return `${text.slice(0, length)}…`;
}

function drawHead({ pen, colours, scale, from }, position) {
  pen.fillStyle = colours.head;
  pen.fillRect(Math.round((position - from) * scale) - 1, 0, 2, HEIGHT - TICKS);
}
