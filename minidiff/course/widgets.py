"""Sliders where somebody can move them, a plain output elsewhere: `widgets.explore(function, steps=[5, 10, 50])`."""

import importlib.util
import inspect
import os
import sys


def explore(function, **choices):
    """Call `function` with one of the choices for each argument, show what it returns, and let sliders change them.

        widgets.explore(show_samples, steps=[5, 10, 20, 50], seed=range(10))

    choices: for each argument a list or range (a slider; a menu for strings) or True/False (a tick box). It starts with
    the defaults of `function` where they are among the choices, else with the first choice. Write it as the last line
    of a cell. The result is stored in the notebook as a plain output; the sliders only stand above it. Without a live
    front end (see `static`) the function is called once, and only its result is shown. Raises ValueError for an
    argument that has no choices, TypeError for one that the function does not take.
    """
    choices = {name: [value, not value] if isinstance(value, bool) else list(value) for name, value in choices.items()}
    empty = [name for name, options in choices.items() if not options]
    if empty:
        raise ValueError(f"{empty[0]}=[] offers nothing to choose from; give a list, a range, True or False.")
    accepted = inspect.signature(function).parameters
    values = {}
    for name, options in choices.items():
        default = accepted[name].default if name in accepted else inspect.Parameter.empty
        values[name] = default if default in options else options[0]
    return Explorer(function, choices, values)


def static():
    """Whether sliders are left out: MINIDIFF_STATIC=1, the smoke tier, CI, no Jupyter kernel, or no ipywidgets."""
    wanted = os.environ.get("MINIDIFF_STATIC")
    if wanted in ("0", "1"):
        return wanted == "1"
    if os.environ.get("MINIDIFF_TIER") == "smoke" or os.environ.get("CI"):
        return True
    return "ipykernel" not in sys.modules or importlib.util.find_spec("ipywidgets") is None


class Explorer:
    """The result of a function for the present values, and sliders that change them. `explore` makes it.

    values: {argument: value}. result: what the function returned for them. sliders: {argument: widget}; none if static.
    """

    def __init__(self, function, choices, values):
        self.function, self.values, self.handle = function, values, None
        self.result = function(**values)
        self.sliders = {} if static() else {name: _control(name, c, values[name]) for name, c in choices.items()}
        for slider in self.sliders.values():
            slider.observe(self._changed, names="value")

    def _changed(self, change):
        self.values = {name: slider.value for name, slider in self.sliders.items()}
        try:
            self.result = self.function(**self.values)
        except Exception as error:  # a traceback from a slider would only reach the browser's log
            self.result = f"{type(error).__name__}: {error}"
        if self.handle is not None:
            self.handle.update(self.result)

    def _ipython_display_(self):
        from IPython.display import display

        if self.sliders:
            import ipywidgets

            display(ipywidgets.VBox(list(self.sliders.values())))
        # An output of its own, not one inside a widget: it is stored in the notebook as a plain picture.
        self.handle = display(self.result, display_id=True)


def _control(name, choices, value):
    import ipywidgets

    label = name.replace("_", " ")
    if all(isinstance(choice, bool) for choice in choices):
        return ipywidgets.Checkbox(value, description=label)
    if any(isinstance(choice, str) for choice in choices):
        return ipywidgets.Dropdown(options=choices, value=value, description=label)
    return ipywidgets.SelectionSlider(options=choices, value=value, description=label, continuous_update=False)
