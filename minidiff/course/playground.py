"""A place to try prompts: boxes and sliders around a pipeline, and the plain call that draws the same pictures."""

import json
import warnings

from minidiff.course import plots
from minidiff.course.widgets import static
from minidiff.samplers import SAMPLERS


def playground(
    pipe, prompt="a red circle above a blue square", negative="", guidance=4.0, sampler="dpmpp_2m", steps=20, seed=0,
    n=4,
):  # fmt: skip
    """Draw n pictures of a prompt, and let somebody change all but n and draw again: the last line of a cell.

    pipe: a TextToImage. Below the pictures stands the call that makes them, to be typed in a cell of one's own, and as
    comments what the package warned of. 'Draw', or Enter in a box, draws; what then fails is shown as text in place of
    the pictures. All of it is stored in the notebook as plain outputs. Without a live front end (see widgets.static) it
    draws once. Raises what the pipeline raises for the first values.
    """
    values = dict(prompt=prompt, negative=negative, guidance=guidance, sampler=sampler, steps=steps, seed=seed)
    return Playground(pipe, n, values)


class Playground:
    """The pictures of the present values, and controls that change them. `playground` makes it.

    values: of the arguments. images: (n, C, H, W), None where drawing failed. result: their figure, or what went wrong.
    call: the code that draws them. notes: a list of what was warned of. controls: {argument: widget}; none if static.
    """

    def __init__(self, pipe, n, values):
        self.pipe, self.n, self.controls, self.handles = pipe, n, {}, ()
        self._draw(values)
        if not static():
            self.controls = _controls(values)
            self.controls["draw"].on_click(lambda button: self._again())
            for name in ("prompt", "negative"):
                self.controls[name].on_msg(lambda box, content, buffers: self._entered(content))

    def _draw(self, values):
        self.values, self.call, self.notes, self.images = values, _code(values, self.n), [], None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            self.images = self.pipe(**_arguments(values, self.n), progress=False, output="tensor")
        self.notes = [str(warning.message) for warning in said]
        self.result = plots.grid(self.images, columns=self.n)

    def _entered(self, content):
        if content.get("event") == "submit":  # Enter, and no letter before it
            self._again()

    def _again(self):
        """Draw for what the controls say; in a callback a traceback or a print would only reach the browser's log."""
        button, values = self.controls["draw"], {name: self.controls[name].value for name in self.values}
        button.disabled, button.description = True, "Drawing ..."
        try:
            self._draw(values)
        except Exception as error:
            self.result = f"{type(error).__name__}: {error}"
        finally:
            button.disabled, button.description = False, "Draw"
        for handle, (data, raw) in zip(self.handles, self._shown()):
            handle.update(data, raw=raw)

    def _shown(self):
        """The two outputs, (what, whether it is a bundle of formats): the pictures, and how to get them."""
        result = ({"text/plain": self.result}, True) if isinstance(self.result, str) else (self.result, False)
        return result, ({"text/plain": "\n# ".join([self.call, *self.notes])}, True)

    def _ipython_display_(self):
        from IPython.display import display

        if self.controls:
            import ipywidgets

            display(ipywidgets.VBox(list(self.controls.values())))
        # Outputs of their own, not inside a widget: they are stored in the notebook as a plain picture and plain text.
        self.handles = tuple(display(data, raw=raw, display_id=True) for data, raw in self._shown())


def _arguments(values, n):
    """What the pipeline is called with; an empty negative prompt is not mentioned."""
    given = {"prompts": values["prompt"], "negative": values["negative"], "n": n}
    given |= {name: value for name, value in values.items() if name not in ("prompt", "negative")}
    return {name: value for name, value in given.items() if name != "negative" or value}


def _code(values, n):
    """The call as Python: pipe("a red circle", n=4, ...)."""
    words = {name: json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
             for name, value in _arguments(values, n).items()}  # fmt: skip
    prompt = words.pop("prompts")
    return f"pipe({', '.join([prompt, *(f'{name}={word}' for name, word in words.items())])})"


def _controls(values):
    """{argument: widget, "draw": the button}; sliders reach at least as far as the value they begin with."""
    import ipywidgets

    wide = ipywidgets.Layout(width="90%")
    guidance, steps = values["guidance"], values["steps"]
    return {
        "prompt": ipywidgets.Text(values["prompt"], description="prompt", layout=wide),
        "negative": ipywidgets.Text(values["negative"], description="negative", layout=wide,
                                    placeholder="what to lead away from"),
        "guidance": ipywidgets.FloatSlider(value=guidance, min=min(0.0, guidance), max=max(15.0, guidance), step=0.5,
                                           description="guidance"),
        "sampler": ipywidgets.Dropdown(options=list(SAMPLERS), value=values["sampler"], description="sampler"),
        "steps": ipywidgets.IntSlider(value=steps, min=1, max=max(100, steps), description="steps"),
        "seed": ipywidgets.BoundedIntText(value=values["seed"], min=0, max=2**31 - 1, description="seed"),
        "draw": ipywidgets.Button(description="Draw", button_style="primary"),
    }  # fmt: skip
