"""Draw the figures of docs/method.md from the shipped models: python docs/figures/draw.py.

Needs Chromium and the extra "dev". One step of configs/ordinary.yaml with 32 prompts gives the tokens; the case is the
fifth example of scenes:eval. Takes half a minute on one core.
"""

import base64
import io
import math
import os
import shutil
import tempfile
from html import escape
from pathlib import Path

import plotly.graph_objects as go
import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

import workbench as wb
from workbench.analysis import figures, regimes
from workbench.analysis.style import CAPABILITY, INFORMATION, INK, MUTED, SERIES, layout, regime_fills
from workbench.data.contexts import evidence_crops
from workbench.distill.divergences import forward_kl, jensen_shannon, reverse_kl
from workbench.render.text import share
from workbench.render.view import RegimeNote
from workbench.traces.reader import Traces

FOLDER = Path(__file__).parent
THEME = "light"
CAP, INFO, GRAY = CAPABILITY[THEME], INFORMATION[THEME], MUTED[THEME]
BATCH = ["training.steps=1", "training.batch_size=32", "training.save_every=0", "data.eval=null", "trace.probes=0"]
FACTS = """SELECT regime, count(*) AS tokens, avg(CAST(rank_teacher > 0 AS INT)) AS teacher_prefers_another,
           avg(exp(logprob_teacher)) AS teacher, avg(exp(logprob_self)) AS self
           FROM tokens GROUP BY ALL ORDER BY ALL"""
FACTS_OF_HS = """SELECT token_type, visibility, count(*) AS tokens,
                 sum(contribution) / sum(sum(contribution)) OVER () AS share_of_loss
                 FROM tokens WHERE regime = 'HS' GROUP BY ALL ORDER BY tokens DESC"""
SUBTITLE = "first step of configs/ordinary.yaml, 32 prompts x 4 answers"
STYLE = f"""<style>
    .row{{display:flex;gap:10px;align-items:stretch;font:14px/1.4 Arial,sans-serif;color:{INK[THEME]}}}
    .card{{flex:1;border:1px solid #dfe2e6;border-radius:8px;padding:12px}}
    .card small{{display:block;color:{GRAY}}}.pics{{display:flex;gap:8px;margin:8px 0;height:120px}}
    .pics img{{height:120px}}.card table{{border-collapse:collapse;font-size:13px;width:100%}}
    td{{padding:1px 6px;white-space:nowrap}}.bar{{width:70%}}
    .bar i{{display:block;height:11px;background:{SERIES[THEME][6]}}}.card p{{margin:8px 0 0}}
    .gap{{width:118px;align-self:center;text-align:center;font-size:14px}}.gap b{{display:block}}
    .gap small{{display:block;color:{GRAY}}}h3{{font:15px Arial,sans-serif;margin:0 0 10px}}</style>"""


def views_html() -> str:
    """Draw one token under the three views: the images of each, and its most likely tokens."""
    example = wb.load_examples("scenes:eval?count=5")[4]
    scored = wb.open_scorer("configs/ordinary.yaml").score(example, seed=1)
    position_idx = [position["token_type"] for position in scored.tokens].index("tag")
    token = scored.tokens[position_idx]
    before = "".join(position["token_text"] for position in scored.tokens[:position_idx]).strip()
    full, crop = (_uri(image) for image in (example.images[0], evidence_crops(example)[0]))
    names = {"student": "student", "self": "privileged student", "teacher": "teacher"}
    images = {"student": [full], "self": [full, crop], "teacher": [full, crop]}
    cards = []
    for view, name in names.items():
        pictures = "".join(f'<img src="{item}">' for item in images[view])
        bars = "".join(
            f"<tr><td>{escape(item['text'].strip())}</td><td class=bar><i "
            f"style='width:{100 * math.exp(item['logprob']):.1f}%'></i></td>"
            f"<td>{share(math.exp(item['logprob']))}</td></tr>"
            for item in token[f"top_k_{view}"][:5]
        )
        logprob = f"{token[f'logprob_{view}']:+.2f}".replace("-", "−")
        note = {
            "student": "learns; deployed",
            "self": "same weights, no gradient",
            "teacher": "other weights, frozen",
        }[view]
        cards.append(
            f"<div class=card><b>{name}</b><small>{note}</small><div "
            f"class=pics>{pictures}</div><table>{bars}</table><p>log-prob of the sampled "
            f"“{escape(token['token_text'].strip())}”: <b>{logprob}</b></p></div>"
        )
    gaps = {name: f"{token[f'{name}_gap']:+.2f}".replace("-", "−") for name in ("information", "capability")}
    arrows = [
        f"<div class=gap style='color:{INFO}'>⟷<b>information gap</b>{gaps['information']} nats<small>same "
        "weights,<br>other information</small></div>",
        f"<div class=gap style='color:{CAP}'>⟷<b>capability gap</b>{gaps['capability']} nats<small>same "
        "information,<br>other weights</small></div>",
    ]
    head = (
        f"<h3>“{escape(example.question)}” The student sampled <b>{escape(before)} …</b> and then "
        f"“{escape(token['token_text'].strip())}”. What does each view predict at this token?</h3>"
    )
    return STYLE + head + f"<div class=row>{cards[0]}{arrows[0]}{cards[1]}{arrows[1]}{cards[2]}</div>"


def regimes_figure(traces: Traces) -> go.Figure:
    """Draw the rule as a map of log-probs under privileged student and teacher, with the batch's tokens."""
    rows = traces.sql(
        "SELECT logprob_self, logprob_teacher, visibility, thresholds FROM tokens JOIN rollouts USING (step, "
        "process_rank, rollout_idx)"
    ).to_pylist()
    thresholds = dict(rows[0]["thresholds"])
    fills = regime_fills(
        {name: RegimeNote(regime.meaning, regime.target) for name, regime in traces.regimes.items()}, THEME
    )
    low = -12.0
    axis = torch.linspace(low, 0, 481, dtype=torch.float64)
    privileged_student, teacher = axis[None, :], axis[:, None]
    is_low = (teacher - privileged_student).abs() < thresholds["gap"]
    sure = privileged_student.exp() + teacher.exp() >= thresholds["probability_sum"]
    index = torch.where(is_low, torch.where(sure, 0, 1), torch.where(teacher >= privileged_student, 2, 3))
    colors = [fills[name][0] for name in ("LH", "LL", "HT", "HS")]
    scale = [(edge / 4, colors[idx]) for idx in range(4) for edge in (idx, idx + 1)]
    figure = go.Figure(
        layout=layout(
            THEME,
            title="Regime of a token",
            subtitle=f"{SUBTITLE} · diagonal band: gap under its mean, {thresholds['gap']:.2f} nats · "
            f"corner of LH: mean sum of probabilities {thresholds['probability_sum']:.2f}",
            height=620,
        )
    )
    edges, heat = axis.tolist(), {"colorscale": scale, "zmin": 0, "zmax": 3, "showscale": False, "opacity": 0.55}
    figure.add_heatmap(x=edges, y=edges, z=index.tolist(), **heat)
    for visibility, color, symbol in (("visible", INK[THEME], "circle"), ("privileged", INFO, "diamond")):
        chosen = [row for row in rows if row["visibility"] == visibility]
        figure.add_scatter(
            x=[max(low, row["logprob_self"]) for row in chosen],
            y=[max(low, row["logprob_teacher"]) for row in chosen],
            mode="markers",
            name=f"{visibility} tokens, {len(chosen):,}",
            marker={
                "size": 6 if visibility == "visible" else 8,
                "color": color,
                "symbol": symbol,
                "opacity": 0.55,
                "line": {"width": 0.7, "color": "#fff"},
            },
        )
    _label_regimes(figure)
    figure.update_xaxes(
        title_text=f"log-prob of the sampled token under the privileged student (nats, clipped at {low:.0f})",
        range=[low - 0.2, 0.25],
        showgrid=False,
    )
    figure.update_yaxes(
        title_text="log-prob under the teacher (nats)", range=[low - 0.2, 0.25], showgrid=False, zeroline=False
    )
    return figure.update_layout(legend={"y": 1.0}, margin={"t": 100})


def _label_regimes(figure: go.Figure) -> None:
    """Annotate the four regions of the map."""
    for text, x, y in (
        ("<b>HT</b> teacher leads: teacher, Jensen-Shannon, weight 1", -8.2, -1.6),
        ("<b>HS</b> privileged self leads: self, reverse KL, 0.6", -3.6, -9.4),
        ("<b>LL</b> agree, uncertain: self, reverse KL, 0.3", -8.2, -8.2),
    ):
        figure.add_annotation(
            x=x, y=y, text=text, showarrow=False, font={"size": 13}, bgcolor="rgba(255,255,255,.85)", borderpad=3
        )
    figure.add_annotation(
        x=-0.05,
        y=-0.05,
        ax=-150,
        ay=74,
        text="<b>LH</b> agree, both confident:<br>teacher, reverse KL, 0.6",
        font={"size": 13},
        bgcolor="rgba(255,255,255,.85)",
        arrowcolor=GRAY,
        arrowwidth=1.2,
    )


def gaps_figure(traces: Traces) -> go.Figure:
    """Draw every token by its two gaps, visible beside privileged."""
    rows = traces.sql("SELECT information_gap, capability_gap, visibility FROM tokens").to_pylist()
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=["visible tokens", "privileged tokens"]
    )
    figure.update_layout(layout(THEME, title="The two gaps of every token", subtitle=SUBTITLE, height=430))
    bound = 10.0
    for panel, (visibility, color) in enumerate((("visible", INK[THEME]), ("privileged", INFO)), start=1):
        chosen = [row for row in rows if row["visibility"] == visibility]
        figure.add_scatter(
            x=[_clip(row["information_gap"], bound) for row in chosen],
            y=[_clip(row["capability_gap"], bound) for row in chosen],
            mode="markers",
            showlegend=False,
            marker={"size": 7, "color": color, "opacity": 0.45, "line": {"width": 0.7, "color": "#fff"}},
            row=1,
            col=panel,
        )
        figure.update_xaxes(
            title_text=f"information gap (nats, clipped at ±{bound:.0f})",
            range=[-bound - 0.5, bound + 0.5],
            zeroline=True,
            row=1,
            col=panel,
        )
    for x, y, text in (
        (-4.5, 8.9, "evidence lowers its probability,<br>teacher raises it"),
        (9.6, -8.6, "evidence raises its probability,<br>teacher lowers it"),
    ):
        figure.add_annotation(
            x=x,
            y=y,
            text=text,
            showarrow=False,
            font={"size": 12, "color": GRAY},
            xanchor="left" if x < 0 else "right",
            row=1,
            col=1,
        )
    figure.update_yaxes(title_text="capability gap (nats)", range=[-bound - 0.5, bound + 0.5], col=1)
    figure.update_annotations(font_size=12.5)
    return figure.update_layout(margin={"t": 100})


def divergences_figure() -> go.Figure:
    """Draw the regimes' losses and gradients by the student's probability of a word to which the target gives 97%."""
    fills = regime_fills({name: RegimeNote() for name in ("LH", "LL", "HT", "HS")}, THEME)
    prob = torch.linspace(0.002, 0.998, 300, dtype=torch.float64)
    logit = (prob / (1 - prob)).log().requires_grad_()
    learner = torch.stack([logit, torch.zeros_like(logit)], -1)
    target = torch.tensor([0.97, 0.03], dtype=torch.float64).log().expand_as(learner)
    curves = {
        "LH, HS: 0.6 × reverse KL": (0.6 * reverse_kl(learner, target), fills["HS"][0], "solid"),
        "LL: 0.3 × reverse KL": (0.3 * reverse_kl(learner, target), "#8a8f96", "solid"),
        "HT: Jensen-Shannon": (jensen_shannon(learner, target), fills["HT"][0], "solid"),
        "not used by DOPD: forward KL": (forward_kl(learner, target), SERIES[THEME][2], "dash"),
    }
    figure = make_subplots(
        1, 2, horizontal_spacing=0.09, subplot_titles=["loss", "negative gradient with respect to the word's logit"]
    )
    figure.update_layout(
        layout(THEME, title="The regimes' losses", subtitle="two words; the target gives 97% to the first", height=400)
    )
    for name, (values, color, dash) in curves.items():
        (slope,) = torch.autograd.grad(values.sum(), logit, retain_graph=True)
        for panel, curve in ((1, values), (2, -slope)):
            figure.add_scatter(
                x=prob.tolist(),
                y=curve.tolist(),
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=panel == 1,
                line={"width": 2.4, "color": color, "dash": dash},
                row=1,
                col=panel,
            )
    figure.update_xaxes(title_text="probability that the student gives to the word", tickformat=".0%")
    figure.update_yaxes(title_text="nats", range=[0, 2.6], row=1, col=1).update_yaxes(
        title_text="nats per unit of logit", row=1, col=2
    )
    figure.update_annotations(font_size=12.5)
    return figure.update_layout(margin={"t": 130}, legend={"y": 1.12})


def main() -> None:
    os.environ["TQDM_DISABLE"] = "1"
    executable = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with tempfile.TemporaryDirectory() as runs, sync_playwright() as playwright:
        run = wb.train(wb.load_config("configs/ordinary.yaml", [*BATCH, f"output_dir={runs}"])).run_dir
        traces = wb.open_traces(run)
        loss = [
            figures.share_bars(regimes.shares_by(traces, split), by=by, title=title, theme=THEME)
            for split, by, title in (
                ("visibility", "position_share", "by visibility"),
                ("visibility", "loss_share", "by visibility"),
                ("token_type", "loss_share", "by token type"),
            )
        ]
        for panel in loss:
            panel.layout.title.text = panel.layout.title.text.replace(run.name, SUBTITLE)
        drawn = {
            "views": views_html(),
            "gaps": _plot(gaps_figure(traces)),
            "regimes": _plot(regimes_figure(traces)),
            "loss": "".join(map(_plot, loss)),
            "divergences": _plot(divergences_figure()),
        }
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1120, "height": 60}, device_scale_factor=1.5)
        page.set_default_timeout(120_000)
        for name, html in drawn.items():
            _save(page, html, FOLDER / f"{name}.png")
        browser.close()
        for query in (FACTS, FACTS_OF_HS):
            print(traces.sql(query).to_pandas().to_string(index=False))


def _clip(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))


def _plot(figure: go.Figure) -> str:
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displayModeBar": False},
        default_width="1090px",
        default_height=f"{figure.layout.height}px",
    )


def _save(page: Page, html: str, file: Path) -> None:
    page.goto("about:blank")
    page.set_content(
        f'<meta charset="utf-8"><script>{get_plotlyjs()}</script><body '
        f'style="margin:0;padding:14px;background:#fff">{html}</body>'
    )
    page.wait_for_timeout(600)
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    taken.quantize(128, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file.name}: {file.stat().st_size / 1024:.0f} KB")


def _uri(image: Image.Image | Path) -> str:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.open(image)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


if __name__ == "__main__":
    main()
