"""What tests of the web page do again and again, and what they ask its modules inside the browser."""

from __future__ import annotations

from support.chromium import Tab
from support.web_service import WebService


def address(service: WebService, host: str = "localhost") -> str:
    return f"http://{host}:{service.addresses.http_port}/"


def ready(tab: Tab) -> None:
    tab.until("document.querySelector('#status').textContent === 'Ready.'")


def choose(tab: Tab, adapter: str) -> None:
    """What choosing in the list does."""
    tab.run(
        f"(select => {{ select.value = '{adapter}'; select.dispatchEvent(new Event('change')) }})"
        "(document.querySelector('#adapter'))"
    )


def done(tab: Tab) -> str:
    """What the page says when both transcripts are there."""
    return str(tab.until("(text => text.startsWith('Done') && text)(document.querySelector('#status').textContent)"))


def words(tab: Tab, side: str) -> list[str]:
    return tab.texts(f"#{side}-words .word > span")


def marked(tab: Tab, side: str) -> list[str]:
    return tab.texts(f"#{side}-words .word.differs > span")


def alert(tab: Tab) -> str:
    tab.until("!document.querySelector('#notice').hidden")
    return tab.text("#notice")


# Scripts

COMPARE = """
(async () => {
  const { compare } = await import('./web/alignment.js');
  const timed = texts => texts.map((text, i) => ({ text, start: i / 2, end: i / 2 + 0.3, confidence: 1 }));
  const loose = text => text.split(' ').filter(Boolean).map(text => ({ text }));
  const told = ({ left, right, differences }) => [
    [left, right].map(({ marks }) => marks.map(({ same }) => (same ? '=' : 'x')).join('')),
    [left, right].map(({ gaps }) => [...gaps]), differences];
  const many = Array.from({ length: 3000 }, (_, i) => 'w' + ((i * 7919) % 97));
  const lacking = timed(many).filter((_, i) => i !== 1500);
  const far = [timed(['a', 'b']), timed(['b', 'b']).map(w => ({ ...w, start: w.start + 60, end: w.end + 60 }))];
  return [told(compare(loose('a b c d'), loose('a x c d e'))), told(compare(loose(''), loose('a b'))),
    told(compare(loose('a b c'), loose('a b'), false)), told(compare(loose('a b c'), loose('x c'), false)),
    compare(timed(many), lacking).differences, told(compare(...far))];
})()
"""
"""Marks, gaps and differences of pairs of transcripts."""

CAPTIONS = """
(async () => {
  const { FORMATS } = await import('./web/captions.js');
  const words = ['we', 'hear', 'you', 'again'].map((text, i) =>
    ({ text, start: i === 3 ? 3661.5 : i / 2, end: i === 3 ? 3662.0046 : i / 2 + 0.4 }));
  return Object.fromEntries(Object.entries(FORMATS).map(([name, { write }]) => [name, write(words)]));
})()
"""
"""A transcript in every format."""
SCORE = """
(async () => {
  const { Comparison } = await import('./web/comparison.js');
  const timeline = { show() {} };
  const comparison = new Comparison([document.createElement('p'), document.createElement('p')], timeline, () => {});
  const timed = text => text.split(' ').map((text, i) => ({ text, start: i, end: i + 0.5, confidence: 1 }));
  comparison.expect('press one to hear it');
  comparison.set(0, { words: timed('press on to here'), state: 'done' });
  const early = comparison.score;
  comparison.set(1, { words: timed('press one to hear the it'), state: 'done' });
  const texts = element => [...element.querySelectorAll('.wrong > span')].map(word => word.textContent);
  const wrong = comparison.elements.map(texts);
  const score = comparison.score;
  comparison.expect('');
  return [early, score, wrong, comparison.score];
})()
"""
"""Right words of two sides, before and after both are there, and the wrong ones."""
RESAMPLE = """
(async () => {
  const { Resampler } = await import('./web/resampler.js');
  const tone = hertz => Float32Array.from({ length: 48000 }, (_, i) => Math.sin(2 * Math.PI * hertz * i / 48000));
  const through = (samples, step) => {
    const resampler = new Resampler(48000, 16000), all = [];
    for (let i = 0; i < samples.length; i += step) all.push(...resampler.push(samples.subarray(i, i + step)));
    return [...all, ...resampler.finish()];
  };
  const [low, high] = [through(tone(440), 128), through(tone(11000), 128)];
  const wanted = i => Math.sin(2 * Math.PI * 440 * (i + 100) / 16000);
  const error = Math.max(...low.slice(100, 15900).map((x, i) => Math.abs(x - wanted(i))));
  const alias = Math.max(...high.slice(100, 15900).map(Math.abs));
  const whole = through(tone(440), 48000);
  return [low.length, error, alias, Math.max(...whole.map((x, i) => Math.abs(x - low[i])))];
})()
"""
"""Length, error, aliasing, and what pieces change, of 48 kHz -> 16 kHz."""

CONTRASTS = """
(() => {
  const channels = colour => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = c => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const found = channels(getComputedStyle(node).backgroundColor);
      if (found.length === 3) return found;
    }
    return [255, 255, 255];
  };
  const own = node => [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
  return [...document.querySelectorAll('body *')]
    .filter(node => own(node) && node.checkVisibility() && !node.closest(':disabled'))
    .map(node => {
      const [a, b] = [light(channels(getComputedStyle(node).color)), light(behind(node))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 80)];
    }).filter(([ratio]) => ratio < 4.5);
})()
"""
"""Visible texts whose contrast to what lies behind them is too low (WCAG 2.2, 1.4.3)."""
