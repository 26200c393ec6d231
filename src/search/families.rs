//! Methods that change what is learned, planned beside the exact plans where lossy results are allowed.

use super::{Proposal, menu};
use crate::plan::{Choice, Request};
use crate::spec::job::{Exactness, Precision};

/// A method, and what is known of what it costs in quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Its name in tables.
    pub name: &'static str,
    /// Its choices, as `--fix` takes them.
    pub choices: &'static [&'static str],
    /// Whether it has a backward pass whose activations can be kept or computed again.
    pub backward: bool,
    /// What is known of its quality, and where that was published.
    pub quality: &'static str,
}

/// All of them.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "8-bit AdamW",
        choices: &["adamw8bit", "mixed_precision:master=no", "fused_update"],
        backward: true,
        quality: "within seeds of AdamW where states alone are 8-bit (Dettmers et al. 2022, arXiv:2110.02861); here weights are 16-bit without a master copy",
    },
    Family {
        name: "MicroAdam",
        choices: &["microadam", "mixed_precision:master=no", "fused_update"],
        backward: true,
        quality: "Llama-2-7B on GSM8k 34.06 % beside 33.74 % of 8-bit AdamW, four seeds (the NanoAdam paper's rerun)",
    },
    Family {
        name: "GaLore, 8-bit, layer-wise",
        choices: &[
            "galore:rank=1024,bits=8,gap=500",
            "mixed_precision:master=no",
            "fused_update",
        ],
        backward: true,
        quality: "GLUE in an hour 84.38 beside 83.63 of full training (LSP-Offload's table, arXiv:2406.10181); HumanEval-X 36.4 beside 45.5",
    },
    Family {
        name: "LSP-Offload",
        choices: &["lsp_offload", "mixed_precision:master=no"],
        backward: true,
        quality: "HumanEval-X 45.6 beside 45.5 of full training, deepseek-coder-1.3b, each after 120 h; GLUE in an hour 85.53 beside 83.63 (its authors' tables, arXiv:2406.10181)",
    },
    Family {
        name: "LoRA",
        choices: &["lora"],
        backward: true,
        quality: "HumanEval-X 39.3 beside 45.5 of full training, deepseek-coder-1.3b (LSP-Offload's table, arXiv:2406.10181)",
    },
    Family {
        name: "QLoRA",
        choices: &["nf4_weights", "lora"],
        backward: true,
        quality: "as 16-bit LoRA in its authors' tests (Dettmers et al. 2023, arXiv:2305.14314)",
    },
    Family {
        name: "MeZO",
        choices: &["zo_sgd:in_place=yes"],
        backward: false,
        quality: "within 1 % of fine-tuning on 7 of 11 tasks of OPT-13B, in 20,000 steps and more (Malladi et al. 2023, arXiv:2305.17333)",
    },
];

/// Each family with activations kept and with them computed again, where the request leaves the choice.
pub fn all(request: &Request) -> Vec<Proposal> {
    let open = request.allow == Exactness::Lossy && !request.fixed.iter().any(Choice::is_rule);
    let families = FAMILIES.iter().filter(|_| open);
    families
        .flat_map(|family| proposals(family, request))
        .collect()
}

fn proposals(family: &'static Family, request: &Request) -> Vec<Proposal> {
    let sixteen = request.job.precision != Precision::F32;
    let scaled = request.job.precision == Precision::Fp16;
    let clipped = request.fixed.iter().any(|c| c.technique == "clip");
    let applies = |text: &&&str| match **text {
        "fused_update" => !scaled && !clipped,
        text => sixteen || !text.starts_with("mixed_precision"),
    };
    let parse = |text: &&str| {
        let text = match (request.job.precision, *text) {
            (_, "lsp_offload") if scaled || clipped => format!("{text}:schedule=after"),
            (Precision::Fp16, text) => text.replace("master=no", "dtype=fp16,master=no"),
            (_, text) => text.to_string(),
        };
        Choice::parse(&text).ok()
    };
    let own: Vec<Choice> = family
        .choices
        .iter()
        .filter(applies)
        .filter_map(parse)
        .collect();
    let streamed = menu::kernels(request);
    let with = |more: &[Choice]| own.iter().chain(&streamed).chain(more).cloned().collect();
    let proposal = |name: String, choices| Proposal {
        name,
        choices,
        family: Some(family),
    };
    let mut all = vec![proposal(family.name.to_string(), with(&[]))];
    if family.backward {
        let recompute = Choice::new("recompute", "layers.*", &[]);
        let name = format!("{} + recompute", family.name);
        all.push(proposal(name, with(&[recompute])));
    }
    all
}
