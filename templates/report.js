"use strict";
// Shows two of a run's network files side by side. The page holds every distinct line once, and for every file which line is in which row.
// Texts are inserted as text, never as HTML.
for (const section of document.querySelectorAll(".files")) {
  const { files, texts, rows } = JSON.parse(section.querySelector("script").textContent);
  const find = (selector) => section.querySelector(selector);
  const [left, right, changes, diff, found] = [".left", ".right", ".changes", ".diff", ".found"].map(find);
  for (const select of [left, right]) files.forEach((name, index) => select.add(new Option(name, index)));
  right.value = files.length - 1;

  // Fills a cell with a line: numbers that differ from the other side are marked, and the comment is dimmed.
  function fill(cell, text, other) {
    const [own, theirs] = [text, other ?? ""].map((line) => line.split(/( {2}# .*)/));
    own.forEach((part, index) => {
      const span = document.createElement("span");
      if (index === 1) span.className = "comment";
      const [words, others] = [part, theirs[index] ?? ""].map((piece) => piece.split(/([0-9.,]*[0-9]+%?)/));
      words.forEach((word, place) => {
        const differs = other !== undefined && words.length === others.length && word !== others[place];
        const piece = document.createElement(differs ? "mark" : "span");
        piece.textContent = word;
        span.append(piece);
      });
      cell.append(span);
    });
  }

  function pair(before, after) {
    const row = document.createElement("div");
    row.className = before === after ? "pair same" : "pair";
    for (const [text, other, side] of [[before, after, "old"], [after, before, "new"]]) {
      const cell = document.createElement("span");
      if (text !== undefined) {
        if (before !== after) cell.className = side;
        fill(cell, text, before === after ? undefined : other);
      }
      row.append(cell);
    }
    return row;
  }

  function show() {
    const [before, after] = [rows[left.value], rows[right.value]];
    const shown = [];
    let skipped = 0, changed = 0;
    const flush = () => {
      if (!skipped) return;
      const gap = document.createElement("div");
      gap.className = "gap";
      gap.textContent = `${skipped} equal ${skipped === 1 ? "line" : "lines"}`;
      shown.push(gap);
      skipped = 0;
    };
    for (let row = 0; row < before.length; row++) {
      const [old, now] = [texts[before[row]], texts[after[row]]];
      if (old === undefined && now === undefined) continue;
      if (old === now && changes.checked) {
        skipped++;
        continue;
      }
      flush();
      changed += old !== now;
      shown.push(pair(old, now));
    }
    flush();
    diff.replaceChildren(...shown);
    found.textContent = `${changed} ${changed === 1 ? "line differs" : "lines differ"}`;
  }

  for (const control of [left, right, changes]) control.addEventListener("change", show);
  show();
}
