/** Plays a recording and tells where it is, as often as the screen is drawn. */

export class Player {
  /** @param {HTMLAudioElement} audio @param {(seconds: number, playing: boolean) => void} moved */
  constructor(audio, moved) {
    this.audio = audio;
    this.moved = moved;
    this.address = "";
    for (const name of ["play", "pause", "ended", "seeked"]) audio.addEventListener(name, () => this.tell());
  }

  get playing() {
    return !this.audio.paused && !this.audio.ended;
  }

  /** @param {Blob | null} recording */
  load(recording) {
    this.audio.pause();
    if (this.address) URL.revokeObjectURL(this.address);
    this.address = recording ? URL.createObjectURL(recording) : "";
    if (this.address) this.audio.src = this.address;
    else this.audio.removeAttribute("src");
  }

  /** Rejects where the browser cannot play it. */
  async play(from = this.audio.ended ? 0 : this.audio.currentTime) {
    this.audio.currentTime = from;
    await this.audio.play();
  }

  pause() {
    this.audio.pause();
  }

  seek(seconds) {
    this.audio.currentTime = seconds;
  }

  tell() {
    this.moved(this.audio.currentTime, this.playing);
    if (this.playing && !this.waiting) {
      this.waiting = requestAnimationFrame(() => {
        this.waiting = 0;
        this.tell();
      });
    }
  }
}
