"""Processor of the built-in models: a byte-level tokenizer, an Idefics3 image processor, a chat template.

Each word of the built-in world is one token, with and without a leading space; other text becomes bytes, so no token is
unknown. The vocabulary depends only on the word list below, so it is the same on every machine.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Idefics3ImageProcessorPil, Idefics3Processor, PreTrainedTokenizerFast

from workbench.data.scenes.world import COLORS, PLACES, SHAPES, TAGS

IMAGE_SIZE = 96  # pixels, after shrinking
PATCH_SIZE = 16
SCALE_FACTOR = 2  # 2 x 2 patches become one image token
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE // SCALE_FACTOR) ** 2

PAD, BOS, EOS, MASK = "<pad>", "<bos>", "<end_of_utterance>", "<mask>"
SPECIAL_TOKENS = (
    PAD,
    BOS,
    EOS,
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    "<user>",
    "<assistant>",
    "<system>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
_WORDS = (
    *(word for location in PLACES[::4] for word in location.split()),
    *SHAPES,
    *(f"{shape}s" for shape in SHAPES if shape != "cross"),
    "crosses",
    *COLORS,
    *TAGS,
    *(str(number) for number in range(10)),
    *("33", "66", "99", "what", "is", "the", "tag", "of", "color", "shape", "how", "many", "are", "there", "do", "and"),
    *("have", "same", "object", "objects", "right", "above", "below", "at", "answer", "then", "yes", "no", "describe"),
    *("scene", "find", "detail", "boxes", "caption", "hint", "reference", "region"),
)


def build_processor(*, masked: bool = False) -> Idefics3Processor:
    """Build processor and tokenizer; `masked` appends a mask token to the vocabulary."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_build_tokenizer(),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "user_token": "<user>",
            "assistant_token": "<assistant>",
            "system_token": "<system>",
            "global_token": "<global-img>",
        },
    )
    if masked:
        tokenizer.add_special_tokens({"mask_token": MASK})
    size = {"longest_edge": IMAGE_SIZE}
    image_processor = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def _build_tokenizer() -> Tokenizer:
    """Byte-level BPE without merges: one token per listed word, else one token per byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [spelled for word in _WORDS for spelled in (word, f"Ġ{word}")]  # Ġ is how ByteLevel writes a space
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *letters, *words])
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
