"""Keys of TRL, transformers and Opacus that mean nothing in a run's config, and what to write.

People bring them along by habit.  Each is refused by name, with the privft key that does the job or
the reason why there is none (`config`, `strictyaml.validate`).
"""

from __future__ import annotations

INSTEAD = {
    "num_train_epochs": "privacy.max_steps: under Poisson sampling steps are counted, not epochs",
    "per_device_train_batch_size": "privacy.expected_batch_size; performance.tokens_per_microbatch "
    "only changes memory",
    "gradient_accumulation_steps": "privacy.expected_batch_size; microbatches follow from "
    "performance.tokens_per_microbatch",
    "train_batch_size": "privacy.expected_batch_size",
    "batch_size": "privacy.expected_batch_size",
    "max_seq_length": "max_length",
    "epsilon": "privacy.target_epsilon",
    "clip_norm": "privacy.max_grad_norm",
    "max_per_sample_grad_norm": "privacy.max_grad_norm",
    "sample_rate": "privacy.expected_batch_size and privacy.declared_units give it",
    "packing": "nothing: packing mixes records, and a unit's gradient must be its own",
    "trust_remote_code": "nothing: code that comes with a model is never run",
    "push_to_hub": "nothing: privft has no network; privft release is the only exit",
    "adaptive_clipping": "privacy.clipping: adaptive",
    "clipping_threshold": "privacy.max_grad_norm",
    "nesterov": "nothing: training.momentum with optim: sgd is plain momentum",
    "report_to": "nothing: privft sends nothing anywhere",
    "bf16": "model.dtype: bfloat16",
    "fp16": "model.dtype: bfloat16 (float16 overflows)",
    "torch_dtype": "model.dtype",
    "rank": "lora.r",
    "lora_rank": "lora.r",
    "load_in_4bit": "model.quantization: 4-bit",
    "load_in_8bit": "model.quantization: 8-bit",
    "task_type": "task: causal-lm or sequence-classification",
    "num_labels": "labels: the list of their names",
    "hidden_dropout_prob": "lora.lora_dropout: the base model's own dropout stays off",
    "attention_dropout": "lora.lora_dropout: the base model's own dropout stays off",
    "ensure_weight_tying": "nothing: a trained copy of tied embeddings stands on its own",
    "load_best_model_at_end": "nothing: choosing among models by private data costs epsilon",
}
