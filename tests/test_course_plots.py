"""Figures: pixels are crisp and in their place, wrong shapes are named, and Jupyter shows each figure exactly once."""

import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from PIL import Image  # noqa: E402

from minidiff.course import pictures, plots  # noqa: E402


def random_images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def rendered(figure):
    """The figure as bytes (H, W, 3)."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def test_grid_puts_each_pixel_as_a_crisp_square():
    images = random_images(6, 3, 4, 4)
    shot = rendered(plots.grid(images, columns=3, scale=5))
    assert shot.shape == (2 * 20 + 4, 3 * 20 + 2 * 4, 3)
    expected = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for k in range(6):
        y, x = 24 * (k // 3), 24 * (k % 3)
        block = shot[y : y + 20, x : x + 20].reshape(4, 5, 4, 5, 3)
        assert (block == expected[k][:, None, :, None]).all()


def test_grid_clips_shows_grey_and_marks_nan():
    grey = torch.tensor([[[[-5.0, 5.0], [0.0, float("nan")]]]])
    assert pictures.pixels(grey).tolist() == [[[[0] * 3, [255] * 3], [[128] * 3, [204, 121, 167]]]]
    assert pictures.pixels(grey[0]).shape == (1, 2, 2, 3)
    assert pictures.pixels([grey[0], grey[0]]).shape == (2, 2, 2, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plots.grid(torch.zeros(2, 4, 8, 8)), r"\(2, 4, 8, 8\).*C = 1 or 3"),
        (lambda: plots.grid(torch.zeros(8, 8)), r"\(8, 8\)"),
        (lambda: plots.grid(torch.zeros(0, 3, 8, 8)), r"\(0, 3, 8, 8\)"),
        (lambda: plots.grid(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), r"uint8.*127\.5"),
        (lambda: plots.grid(torch.zeros(2, 3, 8, 8), titles=["one"]), "1 titles for 2 pictures"),
        (lambda: plots.grid(torch.zeros(2, 3, 8, 8), columns=0), "columns=0"),
        (lambda: plots.filmstrip(torch.zeros(5, 3, 8, 8)), r"\(T, N, C, H, W\)"),
        (lambda: plots.filmstrip(torch.zeros(5, 2, 3, 8, 8), times=[1, 0]), "2 times for 5 frames"),
        (lambda: plots.filmstrip(torch.zeros(5, 2, 3, 8, 8), rows=["a"]), "1 row names for 2"),
        (lambda: plots.animation(torch.zeros(5, 2, 3, 8, 8), path="film.mp4"), "film.mp4.*gif"),
        (lambda: plots.loss_by_noise_level(torch.rand(5), torch.rand(4)), "4 losses"),
        (lambda: plots.losses([]), "at least one"),
        (lambda: plots.bars(["a"], [1, 2]), "1 names, 2 values"),
        (lambda: plots.density_2d(torch.zeros(4, 3)), r"\(4, 3\).*\(N, 2\)"),
        (lambda: plots.density_2d(lambda p: p), r"log density gave shape \(25600, 2\)"),
        (lambda: plots.trajectories_2d(torch.zeros(1, 4, 2)), "at least 2"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_filmstrip_shows_the_first_and_the_last_frame():
    frames = torch.linspace(-1, 1, 31).reshape(31, 1, 1, 1, 1).expand(31, 2, 1, 4, 4)
    figure = plots.filmstrip(frames, times=torch.linspace(1, 0, 31))
    words = [text.get_text() for text in figure.axes[0].texts]
    assert len(words) == 10 and words[0] == "t = 1.00" and words[-1] == "t = 0.00"
    shot = rendered(figure)
    assert (shot[-5, 5] == 0).all() and (shot[-5, -5] == 255).all()
    named = plots.filmstrip(frames, rows=["linear", "cosine"], columns=4)
    assert [text.get_text() for text in named.axes[0].texts] == ["linear", "cosine"]


def test_long_titles_stay_inside_their_picture():
    figure = plots.grid(torch.zeros(3, 1, 16, 16), titles=["a small red circle left of a blue square " * 3] * 3)
    plain = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(plain) for text in figure.axes[0].texts]
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))
    assert all(box.y1 <= figure.bbox.y1 + 1 for box in boxes)


def test_animation_loops_rests_and_stays_small(tmp_path):
    frames = random_images(60, 16, 3, 32, 32)  # pure noise: the worst case
    shown = plots.animation(frames, path=tmp_path / "film.gif", ms=50, hold=900, alt="Sixteen pictures")
    assert len(shown.data) <= 220_000
    data, metadata = shown._repr_mimebundle_()
    assert list(data) == ["image/png"] and metadata["image/png"]["alt"] == "Sixteen pictures"
    for file in (io.BytesIO(shown.data), tmp_path / "film.gif"):
        film = Image.open(file)
        assert film.is_animated and film.info["loop"] == 0
        film.seek(film.n_frames - 1)
        assert film.info["duration"] == 900
    few = plots.animation(frames[:9, :2, :, :8, :8], path=tmp_path / "film.webp")
    film = Image.open(io.BytesIO(few.data))
    still = np.asarray(film.convert("RGB")).astype(int)  # what a viewer shows that does not play it
    assert film.n_frames == 10  # with the still
    film.seek(9)
    last = np.asarray(film.convert("RGB")).astype(int)
    wanted = pictures.mosaic(pictures.pixels(frames[8, :2, :, :8, :8]), 2, last.shape[0] // 8)[0]
    assert np.abs(last - wanted).mean() < 10  # one palette, but the colours of the finished pictures
    assert (still == last).all()


def test_curves_hold_what_they_are_given():
    def flow(t):
        return 1 - t, t

    figure = plots.schedules({"flow": flow, "constant alpha": lambda t: (1.0, 80 * t)}, points=4)
    alpha, sigma, log_snr = figure.axes
    assert np.allclose(alpha.lines[0].get_ydata(), [0.75, 0.5, 0.25, 0]) and sigma.get_yscale() == "log"
    assert np.allclose(log_snr.lines[0].get_ydata()[:3], [2 * np.log(3), 0, -2 * np.log(3)])
    assert np.isnan(log_snr.lines[0].get_ydata()[3])

    t = torch.linspace(0, 1, 1000)
    axes = plots.loss_by_noise_level(t, {"eps": 1 - 0.9 * t, "v": t + 1}, bins=10).axes[0]
    assert np.allclose(axes.lines[0].get_ydata(), 1 - 0.9 * (np.arange(10) / 10 + 0.05), atol=2e-3)
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"

    axes = plots.losses({"a": [4.0, 2.0, 0.0], "b": [(10, 1.0), (20, 2.0)]}, every=5).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0, 5, 10] and axes.lines[2].get_xdata().tolist() == [10, 20]
    assert axes.get_yscale() == "linear"
    mean = plots.losses(list(range(80))).axes[0].lines[1].get_ydata()  # a window of two
    assert mean[0] == 0 and np.allclose(mean[1:], np.arange(1, 80) - 0.5)

    axes = plots.bars(["a", "b"], [2.0, 1.0], errors=[0.1, 0.2], best="low").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [2, 1]
    assert axes.patches[1].get_facecolor() == matplotlib.colors.to_rgba(plots.COLORS[0])
    assert [text.get_text() for text in axes.texts] == ["2 ± 0.1", "1 ± 0.2"]


def test_planes_have_x_across_and_the_same_square():
    scale = torch.tensor([1.0, 0.1])
    points = torch.randn(6000, 2, generator=torch.Generator().manual_seed(0)) * scale
    figure = plots.density_2d({"points": points, "density": lambda p: -0.5 * (p / scale).square().sum(1)})
    for axes in figure.axes:
        density = axes.images[0].get_array()
        across, up = density.sum(0), density.sum(1)
        assert (across > 0.05 * across.max()).mean() > 3 * (up > 0.05 * up.max()).mean()
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    paths = torch.stack([points[:20], points[20:40] * 2, points[:20] * 0])
    axes = plots.trajectories_2d(paths, points=points[:100]).axes[0]
    assert axes.lines[-1].get_ydata().tolist() == [0.0] * 20 and len(axes.collections[0].get_segments()) == 40


def test_figures_are_closed_and_the_settings_untouched():
    before = dict(matplotlib.rcParams)
    figure = plots.lines({"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, x="t", y="loss")
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before
    assert figure.axes[0].lines[0].get_color() == plots.COLORS[0] and figure.axes[0].get_legend() is not None


@pytest.mark.parametrize("most, expected", [(0.6, ["0.2", "0.5"]), (4.0, ["0.2", "0.5", "1", "2"])])
def test_few_decades_are_labelled_with_plain_numbers(most, expected):
    figure = plots.lines({"loss": ([1, 2, 3], [0.15, 0.3, most])}, y="loss", log="y")
    axes = figure.axes[0]
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    shown = [t.get_text() for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert shown == expected and not any(t.get_text() for t in axes.get_yticklabels(minor=True))
