from batching.report import BatchingStatistics, CurvePoint
from gateway.control.plots import Tick, curve_plot, model_plots

CURVE = [CurvePoint(size, 0.010 + 0.001 * size, 0.020 + 0.002 * size) for size in (1, 2, 4, 8, 16, 32, 40)]


def test_a_curve_is_drawn_from_nothing_to_its_highest() -> None:
    plot = curve_plot("fast", CURVE)

    assert plot is not None
    assert plot.seconds == (Tick(122.0, "0"), Tick(69.0, "50.0 ms"), Tick(16.0, "100 ms"))
    assert [tick.text for tick in plot.sizes] == ["1", "16", "32", "40"]
    assert (plot.sizes[0].at, plot.sizes[-1].at) == (62.0, 306.0)
    assert plot.median.split()[-1] == "306,69"
    assert plot.band.split()[: len(CURVE)] == plot.median.split()
    assert "306,16" in plot.band.split()


def test_a_curve_is_told_in_words_too() -> None:
    plot = curve_plot("fast", CURVE)

    assert plot is not None
    assert plot.told == ("fast: a batch of 1 takes 11.0 ms, one of 40 50.0 ms; 95 % of them up to 22.0 ms and 100 ms")


def test_what_is_not_known_is_not_drawn() -> None:
    assert curve_plot("fast", []) is None
    assert curve_plot("fast", CURVE[:1]) is None
    assert curve_plot("fast", [CurvePoint(1, 0.0, 0.0), CurvePoint(2, 0.0, 0.0)]) is not None


def test_each_length_bucket_has_a_drawing_of_its_own() -> None:
    buckets = {"64": tuple(CURVE), "+Inf": tuple(CURVE)}
    known = BatchingStatistics(0, 0, 0, 9, 9, 0.01, 0.0, tuple(CURVE), bucket_curves=buckets)
    unknown = BatchingStatistics(0, 0, 0, 0, 0, 0.0, 0.0)

    titles = [plot.title for plot in model_plots("fast", known)]

    assert titles == ["fast", "fast, items up to 64 long", "fast, any longer items"]
    assert not model_plots("fast", unknown)
