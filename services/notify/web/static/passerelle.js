// What the pages do beyond plain HTML: nothing here is needed to work (NW-61).
//
// A list or card refreshes every 60 s by htmx and can be paused (NW-31). A refresh never moves focus or
// scroll, keeps what is unfolded unfolded, and is said to those who listen. A session that is
// about to end says so (NW-72).
(() => {
  "use strict";

  const refresh = document.getElementById("refresh");
  const pause = document.getElementById("pause");
  const said = document.getElementById("said");

  if (refresh && pause) {
    let paused = false;
    let kept = null;
    pause.hidden = false;
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? pause.dataset.resume : pause.dataset.pause;
    });
    document.body.addEventListener("htmx:beforeRequest", (event) => {
      if (event.detail.elt === refresh && paused) event.preventDefault();
    });
    document.body.addEventListener("htmx:beforeSwap", () => {
      kept = {
        focus: document.activeElement && document.activeElement.id,
        open: [...document.querySelectorAll("#part details[open]")].map((one) => one.id),
        x: window.scrollX,
        y: window.scrollY,
      };
    });
    document.body.addEventListener("htmx:afterSettle", () => {
      const state = document.getElementById("state");
      if (!state || !kept) return;
      refresh.setAttribute("hx-headers", JSON.stringify({ "X-Shown": state.dataset.shown, "X-Background": "1" }));
      refresh.dataset.failed = state.dataset.failed;
      for (const id of kept.open) {
        const one = document.getElementById(id);
        if (one) one.open = true;
      }
      const silent = document.getElementById("silent");
      silent.hidden = silent.childElementCount === 0;
      const focused = kept.focus && document.getElementById(kept.focus);
      if (focused && document.activeElement !== focused) focused.focus({ preventScroll: true });
      window.scrollTo(kept.x, kept.y);
      said.textContent = state.dataset.changed === "yes" ? refresh.dataset.changed : "";
      state.remove();
      kept = null;
    });
    for (const failure of ["htmx:responseError", "htmx:sendError"]) {
      document.body.addEventListener(failure, (event) => {
        const status = event.detail.xhr ? event.detail.xhr.status : 0;
        if (status === 403 || status === 404) window.location.reload(); // no longer to be seen
        else if (status !== 401) {
          said.textContent = refresh.dataset.failed;
          said.classList.remove("govuk-visually-hidden");
          said.classList.add("p-told");
        }
      });
    }
    document.body.addEventListener("htmx:afterRequest", (event) => {
      if (event.detail.successful) {
        said.classList.add("govuk-visually-hidden");
        said.classList.remove("p-told");
      }
    });
  }

  const expiring = document.getElementById("expiring");
  if (expiring) {
    const warnBefore = 120;
    const wait = Math.max(0, Number(expiring.dataset.endsIn) - warnBefore);
    window.setTimeout(() => { expiring.hidden = false; }, wait * 1000);
  }

  const summary = document.querySelector(".govuk-error-summary");
  if (summary) {
    summary.setAttribute("tabindex", "-1");
    summary.focus();
  }
})();
