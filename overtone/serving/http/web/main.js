/** The page: where recordings come from, and what happens to them. */

import { FORMATS, plainText, save } from "./captions.js";
import { Choice } from "./choice.js";
import { Comparison } from "./comparison.js";
import { Listening } from "./listening.js";
import { Mending } from "./mending.js";
import { Notice } from "./notice.js";
import { Player } from "./player.js";
import { Problem, counted } from "./problem.js";
import { outline } from "./recording.js";
import { examples, transcribe } from "./server.js";
import { HEIGHT, Timeline, clock } from "./timeline.js";
import { TokenForm } from "./token_form.js";

const at = (id) => document.getElementById(id);
const BASE = 0;
const ADAPTER = 1;
const SIDES = ["base", "adapter"];

const notice = new Notice(at("notice"), at("sides"));
const timeline = new Timeline(at("timeline"), (seconds) => seekTo(seconds));
const player = new Player(at("audio"), moved);
const choice = new Choice(at("base"), at("adapter"), at("then"), chosen);
const tokenForm = new TokenForm(at("token"), at("token-button"), useToken);
const comparison = new Comparison([at("base-words"), at("adapter-words")], timeline, (word) => playFrom(word.start));

const mending = new Mending(at("mend"), { say, fail, learnt });

/** @type {{audio: Blob, name: string, live: boolean} | null} */
let recording = null;
let listening = null;
let playable = false;
const works = [null, null];
/** What is being asked of the server for each side, to be called off. */

// Recordings

async function take(audio, name, said = "") {
  if (listening) {
    notice.show(new Problem("The microphone is on.", { advice: "Stop it first, then choose a recording." }));
    return;
  }
  begin({ audio, name, live: false, said }, said);
  const own = recording;
  const [drawn] = await Promise.all([outline(audio), run([BASE, ADAPTER])]);
  if (recording !== own) return;
  playable = drawn !== null;
  if (drawn) timeline.load({ ...drawn, live: false });
  else timeline.load({ peaks: null, seconds: recording.seconds ?? 0, live: false });
  at("player").hidden = !drawn && recording.seconds === undefined;
  at("unplayable").hidden = drawn !== null;
  if (drawn) player.load(audio);
  comparison.redraw();
  moved(0, false);
}

function begin(next, said = "") {
  recording = next;
  playable = false;
  for (const work of works) work?.abort();
  notice.clear();
  player.load(null);
  timeline.load({ peaks: null, seconds: 0, live: next.live });
  at("name").textContent = next.name;
  at("said").hidden = !said;
  at("said-words").textContent = said;
  comparison.expect(said);
  document.body.classList.add("worked");
  tellScore();
  at("player").hidden = false;
  at("unplayable").hidden = true;
  moved(0, false);
}

/** Ask the server what these sides make of the recording. */
async function run(sides) {
  const models = [choice.base, choice.model];
  sides = sides.filter((side) => models[side] !== null);
  if (choice.model === null) comparison.set(ADAPTER, { words: [], provisional: "", state: "without" });
  notice.clear();
  say("Transcribing …");
  const own = recording;
  const results = await Promise.allSettled(sides.map((side) => hear(side, models[side])));
  const problems = results.map(({ reason }) => reason).filter((reason) => reason && reason.name !== "AbortError");
  const failed = sides.filter((_, index) => results[index].reason?.name !== undefined);
  if (recording !== own) return;
  if (problems.length) fail(problems[0], () => run(failed));
  else tellResult();
}

async function hear(side, model) {
  works[side]?.abort();
  const work = new AbortController();
  works[side] = work;
  comparison.set(side, { words: [], provisional: "", state: "waiting" });
  try {
    const { words, seconds } = await transcribe(recording.audio, model, work.signal);
    recording.seconds = seconds;
    comparison.set(side, { words, state: "done" });
  } catch (problem) {
    if (works[side] === work) comparison.set(side, { state: "failed" });
    throw problem;
  }
}

function tellResult() {
  const { differences, score } = comparison;
  if (comparison.waiting) return;
  tellScore();
  mending.offer(recording?.audio ?? null, comparison.sides[ADAPTER].words, recording?.said ?? "");
  if (score) {
    const [base, adapter] = score;
    say(`Done. Right words: base ${base} of ${comparison.said.length}, adapter ${adapter} of ${comparison.said.length}.`);
  } else if (differences === null) say("Done.");
  else say(differences ? `Done. They differ in ${counted(differences, "word")}.` : "Done. Both heard the same words.");
}

/** What each side has right, and what can be done with its transcript. */
function tellScore() {
  const { score, said, sides } = comparison;
  SIDES.forEach((name, side) => {
    const place = at(`${name}-score`);
    place.hidden = !score;
    place.textContent = score ? `${score[side]} of ${counted(said.length, "word")} right` : "";
    place.classList.toggle("better", Boolean(score) && score[side] > score[1 - side]);
    at(`${name}-tools`).hidden = sides[side].state !== "done" || !sides[side].words.length;
  });
}

/** Copy and save, for one side. */
function offerTools(name, side) {
  const add = (label, title, act) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "quiet", textContent: label, title });
    button.addEventListener("click", act);
    at(`${name}-tools`).append(button);
  };
  add("Copy", "Copy the text", async () => {
    try {
      await navigator.clipboard.writeText(plainText(comparison.sides[side].words));
      say("Copied.");
    } catch {
      notice.show(new Problem("The browser did not let the page copy.", { advice: "Save the text as a file." }));
    }
  });
  for (const format of Object.keys(FORMATS)) {
    add(format.toUpperCase(), `Save as ${format}`, () => save(comparison.sides[side].words, format, recording?.name ?? ""));
  }
}

// The microphone

async function speak() {
  const models = [choice.base, choice.model].filter(Boolean);
  for (const work of works) work?.abort();
  notice.clear();
  player.pause();
  const mine = new Listening(models, { told, heard, failed: (problem) => broken(mine, problem) });
  listening = mine;
  mode("asking");
  try {
    await mine.begin();
  } catch (problem) {
    listening = null;
    mode("idle");
    fail(problem, speak);
    return;
  }
  begin({ audio: null, name: "Microphone", live: true });
  timeline.load({ peaks: mine.peaks, seconds: 0, live: true });
  models.forEach((_, side) => comparison.set(side, { words: [], provisional: "", state: "listening" }));
  if (models.length < 2) comparison.set(ADAPTER, { words: [], provisional: "", state: "without" });
  mode("listening");
}

async function stop() {
  const mine = listening;
  mode("finishing");
  if (await mine.finish()) keep(mine);
}

function broken(mine, problem) {
  keep(mine);
  fail(problem, speak);
}

/** What was said is a recording now. */
function keep(mine) {
  listening = null;
  recording = { audio: mine.recording(), name: "Microphone", live: true, seconds: mine.peaks.samples / mine.rate };
  timeline.load({ peaks: mine.peaks, seconds: recording.seconds, live: false });
  player.load(recording.audio);
  playable = true;
  mine.conversations.forEach((_, side) => comparison.set(side, { state: "done" }));
  mode("idle");
  moved(0, false);
  tellResult();
}

function told(side, { words, provisional }) {
  const before = comparison.sides[side].words.length;
  comparison.set(side, { words: [...words], provisional });
  const aloud = choice.model === null ? BASE : ADAPTER;
  if (side === aloud && words.length > before) {
    at("aloud").textContent = words.slice(before).map(({ text }) => text).join(" ");
  }
}

function heard() {
  timeline.grow();
  at("time").textContent = clock(timeline.seconds);
}

/** @param {"idle" | "asking" | "listening" | "finishing"} now */
function mode(now) {
  document.body.dataset.mode = now;
  const active = now === "listening" || now === "finishing";
  at("speak-label").textContent = active ? "Stop" : "Speak";
  at("speak").disabled = now === "asking" || now === "finishing";
  at("file").disabled = now !== "idle";
  for (const button of at("examples").querySelectorAll("button")) button.disabled = now !== "idle";
  at("play").disabled = now !== "idle";
  choice.disabled = now !== "idle";
  if (now === "asking") say("Waiting for the microphone …");
  if (now === "listening") say("Listening. Press Stop when you have finished.");
  if (now === "finishing") say("Waiting for the last words …");
}

// Playing

async function playFrom(seconds) {
  if (listening) return;
  try {
    if (playable) await player.play(seconds);
    else timeline.moveTo(seconds, true);
  } catch (error) {
    if (error.name !== "AbortError") at("unplayable").hidden = false;
  }
}

function seekTo(seconds) {
  if (player.playing) playFrom(seconds);
  else {
    if (playable) player.seek(seconds);
    moved(seconds, false);
  }
}

function moved(seconds, playing) {
  timeline.moveTo(seconds, playing);
  comparison.at(seconds, playing);
  at("play-label").textContent = playing ? "Pause" : "Play";
  at("play").classList.toggle("playing", playing);
  at("play").disabled = !playable;
  at("time").textContent = `${clock(seconds)} / ${clock(timeline.seconds)}`;
}

// Adapters and tokens

function chosen(rebased = false) {
  mending.use(choice.learner);
  at("base-model").textContent = choice.base;
  at("adapter-name").textContent = choice.chain.join(", then ") || "Adapter";
  at("adapter-model").textContent = choice.described;
  if (choice.model === null) comparison.set(ADAPTER, { words: [], provisional: "", state: "without" });
  else if (comparison.sides[ADAPTER].state === "without") comparison.set(ADAPTER, { state: "idle" });
  if (!recording?.audio || listening) return;
  run(recording.live || rebased ? [BASE, ADAPTER] : [ADAPTER]);
  recording.live = false;
}

/** Another version of the adapter is in service: what does it make of the recording? */
async function learnt() {
  await choice.refresh();
  const { text } = mending;
  const mended = text.value;
  if (recording?.audio && !listening) await run([ADAPTER]);
  text.value = mended;
}

async function refresh() {
  try {
    await choice.refresh();
    tokenForm.close();
    return true;
  } catch (problem) {
    fail(problem, load);
    return false;
  }
}

async function load() {
  notice.clear();
  if ((await refresh()) && !recording && !listening) say("Ready.");
}

function fail(error, again) {
  const problem = error instanceof Problem ? error : new Problem(`The page failed: ${error.message}`);
  say("");
  tellScore();
  if (!listening && !playable && comparison.sides.every(({ words }) => !words.length)) at("player").hidden = true;
  if (problem.status === 401) tokenForm.ask(again);
  else notice.show(problem, problem.passing ? again : null);
  if (problem.status === 404) choice.refresh().catch(() => {});
}

async function useToken() {
  notice.clear();
  if (!(await refresh())) return false;
  say("Ready.");
  at("file").focus();
  return true;
}

// Wiring

function say(text) {
  at("status").textContent = text;
}

function choose(files) {
  if (files.length > 1) notice.show(new Problem("One recording at a time, please.", { advice: "Drop a single file." }));
  else if (files.length) take(files[0], files[0].name);
}

async function offerExamples() {
  const { credit, recordings } = await examples().catch(() => ({ recordings: [] }));
  at("examples").hidden = recordings.length === 0;
  at("credit").textContent = credit ?? "";
  for (const { file, text } of recordings) {
    const button = document.createElement("button");
    button.textContent = `“${text}”`;
    button.addEventListener("click", async () => {
      const answer = await fetch(new URL(file, import.meta.url));
      take(await answer.blob(), file, text);
    });
    at("example-list").appendChild(document.createElement("li")).append(button);
  }
}

at("timeline").style.height = `${HEIGHT}px`;
at("file").addEventListener("change", (event) => {
  choose([...event.target.files]);
  event.target.value = "";
});
at("speak").addEventListener("click", () => (listening ? stop() : speak()));
at("play").addEventListener("click", () => (player.playing ? player.pause() : playFrom(undefined)));
at("numbers").addEventListener("change", ({ target }) => at("sides").classList.toggle("numbers", target.checked));
at("adapter").addEventListener("focus", () => choice.base && refresh());
for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
}
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  choose([...event.dataTransfer.files]);
});

SIDES.forEach(offerTools);
mode("idle");
offerExamples();
load();
