// Two repairs of what the theme leaves out. Every page reads the same without them.

// A box that scrolls sideways can be reached, and then scrolled, from the keyboard.
const seen = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) {
      const caption = target.querySelector("caption")
      target.tabIndex = 0
      target.setAttribute("role", "region")
      target.setAttribute("aria-label", caption ? caption.textContent : "Table that scrolls sideways")
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) target.removeAttribute(name)
    }
  }
})

document$.subscribe(() => {
  // The search dialog has no name of its own.
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search")
  seen.disconnect()
  // The theme wraps tables after this; look again when it has.
  requestAnimationFrame(() => {
    for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) seen.observe(box)
  })
})
