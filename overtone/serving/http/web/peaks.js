/** The outline of a waveform: the lowest and highest sample of every hundredth of a second. */

export const PER_SECOND = 100;

export class Peaks {
  /** @param {number} rate samples a second of what will be pushed */
  constructor(rate) {
    this.step = rate / PER_SECOND;
    this.length = 0;
    this.low = new Float32Array(4096);
    this.high = new Float32Array(4096);
    this.samples = 0;
    this.loudest = 0;
  }

  /** @param {Float32Array} samples in -1…1 */
  push(samples) {
    for (const sample of samples) {
      const index = Math.floor(this.samples / this.step);
      if (index >= this.low.length) this.grow();
      if (sample < this.low[index]) this.low[index] = sample;
      if (sample > this.high[index]) this.high[index] = sample;
      this.samples += 1;
    }
    this.length = Math.ceil(this.samples / this.step);
    for (let index = Math.max(0, this.length - Math.ceil(samples.length / this.step) - 1); index < this.length; index += 1) {
      this.loudest = Math.max(this.loudest, this.high[index], -this.low[index]);
    }
  }

  grow() {
    for (const name of ["low", "high"]) {
      const larger = new Float32Array(2 * this[name].length);
      larger.set(this[name]);
      this[name] = larger;
    }
  }
}
