"""A student's copy on a plain `vllm serve`, which samples in its place.

Weights cross in a folder that both machines read: rank 0 writes them as model folders have them, and vLLM reads them by
reload_weights. Where both sides can, they cross by vLLM's own transfer instead (weight_transfer.py). vLLM then drops
what it computed with the old ones, and gets their version. Its answers name the version of each token, so a restart or
another run's weights show, and the weights are sent again.

Prompts cross as the run's ids with one placeholder per picture, pictures as PNG. vLLM returns the ids that it read.

The requests are those of vLLM 0.32 with VLLM_SERVER_DEV_MODE=1 and --enable-scale-out.
"""

import base64
import io
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, tensor
from transformers.core_model_loading import revert_weight_conversion

from workbench.errors import ConfigError, PolicyError
from workbench.files.folders import temporary_folder
from workbench.policies import Completion, SamplingOptions
from workbench.policies.models import DTYPES
from workbench.policies.serving.addresses import TOKEN, Patience, split_addresses
from workbench.policies.serving.client import UNAUTHORIZED, ConflictError, Failed, RefusedError, ServerClient
from workbench.policies.serving.sampler import KEY, ServedSampler, head_rows
from workbench.policies.serving.weight_transfer import WeightTransfer, can_transfer
from workbench.policies.serving.wire import SAMPLER, WireError
from workbench.policies.vllm import Generation, Sampled
from workbench.types import Prompt

if TYPE_CHECKING:
    from workbench.policies.autoregressive import AutoregressivePolicy

COMMAND = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out"
GENERATE, RPC = "/inference/v1/generate", "/collective_rpc"
LOADING = "loading"  # begins the version of weights that have not come yet, or could not be loaded
REFUSED = 400
log = logging.getLogger("workbench")
MOST = 256  # requests at the same time: vLLM's usual --max-num-seqs
SETTINGS = {  # of vLLM that a run depends on, with the option that sets them
    ("model_config", "logprobs_mode"): ("raw_logprobs", "--logprobs-mode raw_logprobs"),
    ("model_config", "quantization"): (None, "no --quantization"),
    ("parallel_config", "data_parallel_size"): (1, "--data-parallel-size 1"),
}


class VllmClient(ServerClient):
    """Client of one `vllm serve`."""

    _content = "application/json"

    def __init__(self, addresses: tuple[str, ...], name: str, patience: Patience) -> None:
        super().__init__(addresses, name, patience, SAMPLER)
        self._kind_of_server = "vLLM"
        self._reported: set[tuple[str, int]] = set()
        self._reporting = threading.Lock()

    def _command_of(self, kind: str) -> str:
        return COMMAND

    def _sentence(self, answer: bytes) -> str:
        """The message of vLLM's error."""
        try:
            error = json.loads(answer)["error"]
            return str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            return ""

    def _may_pass(self, status: int, sentence: str) -> bool:
        """Of an engine that has ended, too: its server ends, and may be started again."""
        return super()._may_pass(status, sentence) or "EngineCore" in sentence

    def _report(self, address: str, failure: Any, tries: int, *, starts: bool) -> None:
        """Log each failure once, though many requests meet it."""
        with self._reporting:
            if (str(failure), tries) not in self._reported:
                self._reported.add((str(failure), tries))
                super()._report(address, failure, tries, starts=starts)

    def get(self, path: str) -> Any:
        """The answer to a request without a body, from JSON."""
        return self._persist("GET", path, self.addresses, parse=_parse)[0]

    def post(self, path: str, values: dict[str, Any] | None = None) -> Any:
        """The answer to a request with these values, from JSON; None = an empty one."""
        return self._persist("POST", path, self.addresses, json.dumps(values or {}).encode(), parse=_parse)[0]

    def info(self) -> dict[str, Any]:
        """Facts of the server. Raises: PolicyError if it lacks what sampling for a run needs."""
        address = self.addresses[0]
        try:
            config = self.get("/server_info?config_format=json")["vllm_config"]
            version = self.get("/weight_info")["weight_version"]
        except RefusedError:
            raise PolicyError(
                f"{self.name}: {address} is a vLLM that lets no run replace its weights. Expected vLLM 0.32 or newer "
                f"in its developer mode. Start it with `{COMMAND}`, where only your runs reach it."
            ) from None
        for (part, key), (value, option) in SETTINGS.items():
            if config[part][key] != value:
                raise PolicyError(
                    f"{self.name}: {address} has {key} {config[part][key]!r}. Expected {value!r}. Start it with "
                    f"`{COMMAND}` and {option}."
                )
        model = config["model_config"]
        images = (model.get("multimodal_config") or {}).get("mm_processor_kwargs") or {}
        return {
            "model": model["model"],
            "dtype": str(model["dtype"]).removeprefix("torch."),
            "engine": "vllm",
            "precisions": {},
            "most_logprobs": model["max_logprobs"],
            "image_processor": images,
            "transfer": (config.get("weight_transfer_config") or {}).get("backend"),
            "has_weights": not version.startswith(LOADING),
        }

    def generate(self, bodies: list[dict[str, Any]]) -> list["Future[dict[str, Any]]"]:
        """Begin requests for answers, MOST at a time. An error of one ends those that follow it on its thread."""
        answers: list[Future[dict[str, Any]]] = [Future() for _ in bodies]
        pairs = list(zip(bodies, answers, strict=True))
        for start in range(min(MOST, len(pairs))):
            # a daemon: a run that stops need not wait for it
            threading.Thread(target=self._generate, args=(pairs[start::MOST],), name=self.name, daemon=True).start()
        return answers

    def _generate(self, pairs: list[tuple[dict[str, Any], "Future[dict[str, Any]]"]]) -> None:
        failure: BaseException | None = None
        for body, answer in pairs:
            try:
                if failure is None:
                    answer.set_result(self.post(GENERATE, body))
                    continue
            except BaseException as error:
                failure = error
            answer.set_exception(failure)

    def post_once(self, path: str, values: dict[str, Any]) -> Any:
        """As `post`, of a request that must not be tried again. Raises: ConflictError if its connection breaks off."""
        address = self.addresses[0]
        try:
            return _parse(self._once("POST", address, path, json.dumps(values).encode()))
        except (Failed, WireError) as error:
            if isinstance(error, Failed) and error.hangs:
                raise self._gave_up(address, error, 1, 0.0, starts=False) from None
            raise ConflictError(f"{self.name}: {address}{path}: {error}") from None

    def replace(self, version: str, load: Callable[[], None]) -> None:
        """Have vLLM take weights by `load`, as a version. Raises: ConflictError if another run's came meanwhile."""
        loading = f"{LOADING} {version}"
        self.post("/update_weight_version", {"new_version": loading})
        load()
        self.post("/reset_prefix_cache?reset_running_requests=true")
        self.post("/reset_encoder_cache")
        if self.get("/weight_info")["weight_version"] != loading:
            raise ConflictError(f"{self.name}: {self.addresses[0]} got the weights of another run")
        self.post("/update_weight_version", {"new_version": version})
        self._reported.clear()

    def load(self, folder: Path) -> None:
        """Have vLLM load the weights in a folder. Raises: PolicyError if it cannot."""
        try:
            self.post(RPC, {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        except RefusedError as error:
            raise PolicyError(
                f"{error}. vLLM has lost its weights; the student's were in {folder.parent}. Expected that vLLM reads "
                "this folder at the same path, and serves the model that the run starts from. Set output_dir to a "
                f"folder that both machines share, or correct the model, and start it again with `{COMMAND}`."
            ) from None


class VllmServeSampler(ServedSampler):
    """Samples for one student.

    folder  in which weights cross; vLLM reads it at the same path
    """

    client: VllmClient

    def __init__(self, address: str, patience: Patience, *, run: str, image_options: dict, folder: Path) -> None:
        super().__init__(address, patience, run=run, image_options=image_options)
        self._folder = folder.absolute()
        self._transfer: WeightTransfer | None = None
        self._answers: dict[str, list[Future[dict[str, Any]]]] = {}  # of generations in progress, by request

    def _connect(self, addresses: tuple[str, ...], patience: Patience) -> VllmClient:
        return VllmClient(addresses, self.name, patience)

    def require_fits(self, student: "AutoregressivePolicy", options: SamplingOptions) -> None:
        """Choose how weights cross. Raises: PolicyError for another vocabulary, or a server that lacks an option."""
        if options.stop_strings:
            raise ConfigError(
                f"{KEY}={self.source} is a vLLM, which has no stop strings. Remove sampling.stop_strings."
            )
        if self.info["image_processor"] != (self.image_options or {}):
            raise PolicyError(
                f"{self.name}: {self.source} processes pictures with {self.info['image_processor']}, and this run with "
                f"{self.image_options}. Start it with `{COMMAND} --mm-processor-kwargs "
                f"'{json.dumps(self.image_options)}'`."
            )
        count = len(student.stop_ids) + 1
        if 0 <= self.info["most_logprobs"] < count:
            raise PolicyError(
                f"{self.name}: {self.source} returns at most {self.info['most_logprobs']} log-probs of a token. "
                f"Expected {count}. Start it with `{COMMAND} --max-logprobs {count}`."
            )
        if can_transfer(self.info["transfer"], student.device):
            self._transfer = WeightTransfer(self.info["transfer"], self.source, self.client.post_once, student.device)
            log.info("%s: weights cross to %s by vLLM's transfer (%s)", self.name, self.source, self.info["transfer"])
        rows = head_rows(student)
        if not self.info["has_weights"]:  # its next pass would end it
            return
        if not self._has_token(rows - 1) or self._has_token(rows):
            raise PolicyError(
                f"{KEY}={self.source} serves {self.info['model']}, which has not the {rows} tokens of the student. "
                "Start it with the model that the run starts from."
            )

    def _has_token(self, token: int) -> bool:
        """Return whether a token is in vLLM's vocabulary. Raises PolicyError if token ids are not served."""
        sampling = {"max_tokens": 1, "logprobs": 1, "logprob_token_ids": [token], "detokenize": False}
        try:
            self.client.post(GENERATE, {"token_ids": [0], "sampling_params": sampling})
        except RefusedError as error:
            if error.status == REFUSED:
                return False
            raise PolicyError(
                f"{self.name}: {self.source} does not serve token ids (status {error.status}). Start it with "
                f"`{COMMAND}`."
            ) from None
        return True

    def _sendable(self, name: str, weight: Tensor) -> Tensor:
        """A copy: a matrix in vLLM's data type if that is narrower. It keeps some vectors in float32."""
        device = "cpu" if self._transfer is None else weight.device
        theirs = DTYPES[self.precision]
        is_wider = weight.ndim > 1 and weight.is_floating_point() and weight.dtype.itemsize > theirs.itemsize
        return weight.detach().to(device, theirs if is_wider else weight.dtype, copy=True).contiguous()

    def _named(self, student: "AutoregressivePolicy", weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return revert_weight_conversion(student.model, weights)

    def _send(self, bundles: Iterator[tuple[dict[str, Tensor], bool]]) -> None:
        try:
            if self._transfer is not None:
                self._send_by(self._transfer, bundles)
                return
            with temporary_folder(self._folder / "sampler-weights") as folder:
                for idx, (weights, _) in enumerate(bundles):
                    save_file(weights, folder / f"model-{idx:05d}.safetensors")
                self.client.replace(self._version, lambda: self.client.load(folder))
        finally:
            for _ in bundles:
                pass  # after an error too, other ranks gather to the end

    def _send_by(self, transfer: WeightTransfer, bundles: Iterator[tuple[dict[str, Tensor], bool]]) -> None:
        workers = self.client.get("/get_world_size")["world_size"]
        present = self.client.get("/weight_info")["weight_version"]
        self.client.replace(self._version, lambda: transfer.send(bundles, workers, present, self._version))

    def sample(
        self,
        student: "AutoregressivePolicy",
        prompts: list[Prompt],
        seeds: list[list[int]],
        options: SamplingOptions,
    ) -> list[list[Completion]]:
        """Sample one completion per seed of each prompt with the weights that `send_weights` sent.

        Raises: as ServedSampler.sample.
        """
        return student.sample_by(self, prompts, seeds, options) if prompts else []

    def prefetch(
        self,
        student: "AutoregressivePolicy",
        prompts: list[Prompt],
        seeds: list[list[int]],
        options: SamplingOptions,
    ) -> None:
        bodies = self._bodies(student.generation(prompts, seeds, options))
        self._answers[self._key(bodies)] = self.client.generate(bodies)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Nothing: `send_weights` sends them, by all ranks."""

    def generate(self, generation: Generation) -> list[list[Sampled]]:
        """As Engine.generate. Raises: ConflictError if other weights sampled a token."""
        bodies = self._bodies(generation)
        answers = self._answers.pop(self._key(bodies), None) or self.client.generate(bodies)
        sampled = (self._sampled(answer.result(), generation.stop) for answer in answers)
        return [[next(sampled) for _ in values] for values in generation.seeds]

    def _key(self, bodies: list[dict[str, Any]]) -> str:
        """What identifies a generation: its version, and each answer's prompt and seed."""
        return f"{self._version} {[(body['token_ids'], body['sampling_params']['seed']) for body in bodies]}"

    def _bodies(self, generation: Generation) -> list[dict[str, Any]]:
        """A request for each answer."""
        urls: dict[int, str] = {}
        options, ends = generation.options, sorted(generation.stop)
        # vLLM returns as many log-probs as ids are named, the sampled token's among them: an id more than it ends by
        other = next(token for token in range(len(ends) + 1) if token not in generation.stop)
        sampling = {
            "max_tokens": options.max_completion_length,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k or -1,
            "stop_token_ids": ends,
            "logit_bias": {str(token): -100.0 for token in generation.never} or None,
            "logprobs": len(ends) + 1,
            "logprob_token_ids": [*ends, other],
            "detokenize": False,
        }
        return [
            {
                "token_ids": list(request.ids),
                "content_parts": [{"type": "image_url", "url": _url(image, urls)} for image in request.images] or None,
                "sampling_params": {**sampling, "seed": seed},
                "return_token_ids": True,
            }
            for request, values in zip(generation.requests, generation.seeds, strict=True)
            for seed in values
        ]

    def _sampled(self, answer: dict[str, Any], stop: frozenset[int]) -> Sampled:
        try:
            (choice,) = answer["choices"]
            ids = tuple(choice["token_ids"])
            versions = {span["version"] for span in choice["weight_versions"] or ()}
            if choice["finish_reason"] == "abort" or versions != {self._version}:
                raise ConflictError(f"{self.name}: {self.source} sampled with the weights {sorted(versions)}")
            logprobs = tuple(_logprob(entry, stop) for entry in choice["logprobs"]["content"])
            if len(logprobs) != len(ids):
                raise WireError(f"{len(logprobs)} log-probs for {len(ids)} tokens")
            return Sampled(ids, logprobs, tuple(answer["prompt_token_ids"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(
                f"{self.name}: {self.source} gave an incomplete answer ({type(error).__name__}: {error}). Expected "
                "that of vLLM 0.32: tokens with log-probs and versions of weights. Install this version."
            ) from error


def connect_sampler(address: str, patience: Patience, *, run: str, image_options: dict, folder: Path) -> ServedSampler:
    """The client of what serves at an address: plain vLLM, or `workbench sampler`.

    Raises: as ServedSampler.
    """
    addresses = split_addresses(address, KEY)
    if len(addresses) == 1 and _is_vllm(ServerClient(addresses, "sampler", patience, SAMPLER)):
        return VllmServeSampler(address, patience, run=run, image_options=image_options, folder=folder)
    return ServedSampler(address, patience, run=run, image_options=image_options)


def _is_vllm(client: ServerClient) -> bool:
    """Return whether vLLM answers there. Raises PolicyError if it requires its key."""
    try:
        is_like_vllm = isinstance(json.loads(client.first_answer("/version"))["version"], str)
        return is_like_vllm and json.loads(client.first_answer("/v1/models"))["data"][0]["owned_by"] == "vllm"
    except RefusedError as error:
        if error.status == UNAUTHORIZED and "/v1/models" in str(error):
            raise PolicyError(
                f"{client.name}: {client.addresses[0]} requires the key of `vllm serve --api-key`. Set {TOKEN} to it "
                "where the run starts."
            ) from None
        return False
    except (ValueError, LookupError, TypeError):
        return False


def _parse(body: bytes) -> Any:
    """JSON; None for an empty answer. Raises WireError for a truncated one."""
    try:
        return json.loads(body) if body else None
    except ValueError as error:
        raise WireError(f"{len(body):,} bytes are not complete JSON ({error})") from None


def _url(image: Image.Image, urls: dict[int, str]) -> str:
    """A picture as a data URI, each once."""
    if id(image) not in urls:
        data = io.BytesIO()
        image.save(data, "PNG", compress_level=1)
        urls[id(image)] = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return urls[id(image)]


def _logprob(entry: dict[str, Any], stop: frozenset[int]) -> float:
    """Log-prob of a sampled token; of an end token that of any."""
    if entry["token_id"] not in stop:
        return entry["logprob"]
    logprobs = {other["token_id"]: other["logprob"] for other in entry["top_logprobs"]}
    return float(tensor([logprobs[token] for token in stop]).logsumexp(0))
