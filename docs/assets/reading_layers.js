// Evidence folded until it is wanted: the code of a page lies behind a bar that names it, its recorded output in sight.
// The style sheet folds and keeps the bar's place before this runs, so nothing moves; without scripts all is open.
{
  const CODE = "article > .highlight:is(.language-python, .language-py)"
  const KEPT = "measured.code" // in local storage: "open" where a reader wants all code shown
  const NAMES = 4 // that a bar tells of what its code defines

  const root = document.documentElement
  const remembered = () => {
    try {
      return localStorage.getItem(KEPT)
    } catch {
      return null // Storage is off: every visit begins folded.
    }
  }
  const remember = (choice) => {
    try {
      localStorage.setItem(KEPT, choice)
    } catch {}
  }

  // Fences with nothing between them are one piece of code: a bar on the first opens them all.
  let runs = []

  function bar(run) {
    const text = run.map((fence) => fence.querySelector("pre").textContent.trimEnd()).join("\n")
    const lines = text.split("\n").length
    const defined = [...text.matchAll(/^(?:async )?(?:def|class) (\w+)/gm)].map((found) => found[1])
    const named = defined.length > NAMES ? [...defined.slice(0, NAMES), "…"] : defined
    const made = document.createElement("button")
    made.type = "button"
    made.className = "ma-fold"
    made.append("Code")
    if (named.length) {
      const names = document.createElement("code")
      names.textContent = named.join(", ")
      made.append(" ", names)
    }
    made.append(` ${lines} ${lines === 1 ? "line" : "lines"}`)
    made.addEventListener("click", () => set(run, run[0].dataset.fold !== "open"))
    return made
  }

  function set(run, open) {
    for (const [at, fence] of run.entries()) {
      fence.dataset.fold = open ? "open" : at ? "tail" : "head"
      // Folded code is still found by the browser's own search, which opens it.
      for (const part of fence.querySelectorAll(":scope > :is(pre, .filename)")) {
        if (open) part.removeAttribute("hidden")
        else part.setAttribute("hidden", "until-found")
      }
    }
    run[0].querySelector(".ma-fold").setAttribute("aria-expanded", open)
  }

  const all = (open) => runs.forEach((run) => set(run, open))

  function openAt(hash) {
    const target = hash.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)))
    const run = target && runs.find((each) => each.some((fence) => fence.contains(target)))
    if (!run) return
    set(run, true)
    target.scrollIntoView()
  }

  // At the end of the bar of layers, where the page has one.
  function addSwitch() {
    const layers = document.querySelector(".ma-layers")
    if (!layers || !runs.length || layers.querySelector("button")) return
    const made = document.createElement("button")
    made.type = "button"
    const say = () => {
      made.textContent = root.dataset.code === "open" ? "Hide all code" : "Show all code"
    }
    made.addEventListener("click", () => {
      const open = root.dataset.code !== "open"
      if (open) root.dataset.code = "open"
      else delete root.dataset.code
      remember(open ? "open" : "folded")
      all(open)
      say()
    })
    say()
    layers.append(made)
  }

  // The page's head has asked this before the first paint; where a theme leaves that out, it is asked here.
  if (remembered() === "open") root.dataset.code = "open"
  if (new URLSearchParams(location.search).get("print") === "all") root.dataset.print = "all"

  document$.subscribe(() => {
    runs = []
    for (const [at, fence] of [...document.querySelectorAll(CODE)].entries()) {
      fence.id ||= `code-${at + 1}`
      if (runs.at(-1)?.at(-1) === fence.previousElementSibling) runs.at(-1).push(fence)
      else runs.push([fence])
    }
    for (const run of runs) {
      if (!run[0].querySelector(".ma-fold")) run[0].prepend(bar(run))
      set(run, root.dataset.code === "open")
    }
    addSwitch()
    openAt(location.hash)
  })

  addEventListener("hashchange", () => openAt(location.hash))
  document.addEventListener("beforematch", (event) => {
    const run = runs.find((each) => each.some((fence) => fence.contains(event.target)))
    if (run) set(run, true)
  })
}
