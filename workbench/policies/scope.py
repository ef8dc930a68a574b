"""Model types that the workbench cannot train, with the reason, known before anything is loaded."""

from transformers import PretrainedConfig

_USE = "Choose a model that writes from left to right, with the prompt's images among its tokens, such as Qwen3-VL."
_CAPTIONER = "a captioner of a Q-Former and a language model, whose processor has no chat template"
_READER = "a reader of documents, whose processor writes the prompt itself"
_OTHER = {
    "blip": "a captioner whose text decoder reads the image through cross-attention alone, without a prompt for both",
    "blip-2": _CAPTIONER,
    "diffusion_gemma": "a block diffusion model with an encoder of its own for the prompt",
    "evolla": "a protein model, which takes amino acids instead of images",
    "git": "a captioner whose image is a prefix outside of the token ids, so that logits and tokens differ in number",
    "got_ocr2": _READER,
    "instructblip": _CAPTIONER,
    "instructblipvideo": "a video model, which takes no images",
    "pi0": "a robot policy, which predicts actions instead of text",
    "pp_chart2table": _READER,
    "shieldgemma2": "a classifier of images, whose processor writes the prompt itself",
}


def out_of_scope(config: PretrainedConfig) -> str | None:
    """Say what a model is that cannot be trained here; None for a model that may be.

    Encoder-decoder models score an answer without the prompt in the decoder's sequence, so positions of prompt and
    answer, shared prompts and cached features mean other things to them.
    """
    if config.model_type in _OTHER:
        return f"{config.model_type} is {_OTHER[config.model_type]}. {_USE}"
    if getattr(config, "is_encoder_decoder", False):
        return (
            f"{config.model_type} is an encoder-decoder model. These are not supported because prompt and answer are "
            f"two sequences, of an encoder and of a decoder, and every view here scores one. {_USE}"
        )
    return None
