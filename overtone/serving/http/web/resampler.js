/** Samples of one rate -> samples of another, piece by piece: band-limited by a windowed sinc (Smith 2002). */

const ZEROS = 16;
/** Zero crossings of the filter on each side. */
const STEPS = 64;
/** Entries of the filter's table between two zero crossings. */
const ROLL_OFF = 0.92;
/** Where the filter begins to fall, of the lower rate's half. */

export class Resampler {
  constructor(from, to) {
    this.ratio = from / to;
    this.scale = Math.min(1, to / from) * ROLL_OFF;
    this.reach = Math.ceil(ZEROS / this.scale);
    this.table = filter();
    this.waiting = new Float32Array(this.reach); // silence before the first sample
    this.next = this.reach; // where the next output lies in `waiting`, in samples
  }

  /** @param {Float32Array} samples @returns {Float32Array} what can be told by now */
  push(samples) {
    const all = new Float32Array(this.waiting.length + samples.length);
    all.set(this.waiting);
    all.set(samples, this.waiting.length);
    const count = Math.max(0, Math.ceil((all.length - this.reach - this.next) / this.ratio));
    const result = new Float32Array(count);
    for (let index = 0; index < count; index += 1) result[index] = this.at(all, this.next + index * this.ratio);
    const next = this.next + count * this.ratio;
    const done = Math.max(0, Math.floor(next) - this.reach);
    this.waiting = all.slice(done);
    this.next = next - done;
    return result;
  }

  /** The last samples, followed by silence. */
  finish() {
    return this.push(new Float32Array(this.reach));
  }

  at(samples, position) {
    const first = Math.ceil(position - this.reach);
    const last = Math.min(samples.length - 1, Math.floor(position + this.reach));
    let sum = 0;
    for (let index = Math.max(0, first); index <= last; index += 1) {
      const place = Math.abs(index - position) * this.scale * STEPS;
      const entry = Math.floor(place);
      if (entry + 1 >= this.table.length) continue;
      const weight = this.table[entry] + (place - entry) * (this.table[entry + 1] - this.table[entry]);
      sum += samples[index] * weight;
    }
    return sum * this.scale;
  }
}

/** One half of a sinc under a Hann window. */
function filter() {
  const table = new Float32Array(ZEROS * STEPS + 1);
  for (let index = 0; index < table.length; index += 1) {
    const x = index / STEPS;
    const sinc = x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
    table[index] = sinc * (0.5 + 0.5 * Math.cos((Math.PI * x) / ZEROS));
  }
  return table;
}
