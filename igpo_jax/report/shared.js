"use strict";
const element = (id) => document.getElementById(id);
// Text from a model or a data file becomes textContent, never markup.
const make = (tag, className, text = "", properties = {}) =>
  Object.assign(document.createElement(tag), {className, textContent: text, ...properties});

// A token's text, with spaces at its ends, line breaks and tabs that can be seen.
const spaces = (text) => "␣".repeat(text.length);
const visibleText = (text) => text.replace(/^ +| +$/g, spaces).replaceAll("\n", "↵").replaceAll("\t", "⇥");

// Viridis: equal steps look equal, also in gray and to color-blind readers.
const viridis = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"].map(
  (hex) => [0, 2, 4].map((i) => Number("0x" + hex.slice(i, i + 2))));
const shade = (share) => {
  const at = Math.min(Math.max(share, 0), 1) * (viridis.length - 1), low = Math.min(Math.floor(at), viridis.length - 2);
  return viridis[low].map((from, i) => Math.round(from + (at - low) * (viridis[low + 1][i] - from)));
};
const hex = (parts) => "#" + parts.map((part) => part.toString(16).padStart(2, "0")).join("");
// Returns whether white has more contrast than black, by WCAG 2.2's relative luminance; the better one has at least 4.5 to 1.
const isDark = (parts) => {
  const [r, g, b] = parts.map((part) => part / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b < 0.179;
};
const showScale = () => { element("scale").style.background = "linear-gradient(90deg," + viridis.map(hex).join(",") + ")"; };

// Makes the button play the slider to its maximum, from the start if it is already there. Returns a function that pauses.
const makePlayer = (slider, button, paint) => {
  let timer = null;
  const atEnd = () => Number(slider.value) >= Number(slider.max);
  const pause = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "▶ Play";
  };
  button.onclick = () => {
    if (timer) return pause();
    if (atEnd()) slider.value = 0;
    button.textContent = "❚❚ Pause";
    paint();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      paint();
      if (atEnd()) pause();
    }, Math.min(500, Math.max(40, 8000 / slider.max)));
  };
  slider.oninput = () => { pause(); paint(); };
  return pause;
};
