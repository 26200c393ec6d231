//! Methods that change what is learned, planned beside the exact plans where lossy results are allowed.

use super::exact;
use super::price::decides;
use crate::error::{Error, Result};
use crate::plan::{Choice, Plan, Request};
use crate::spec::job::{Exactness, Precision};

/// A method, and what is known of what it costs in quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Its name in tables.
    pub name: &'static str,
    /// Its choices, as `--fix` takes them.
    pub choices: &'static [&'static str],
    /// A technique that the search may choose value by value, where it gains by it.
    pub opens: Option<&'static str>,
    /// What is known of its quality, and where that was published.
    pub quality: &'static str,
}

/// All of them.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "8-bit AdamW",
        choices: &["adamw8bit", "mixed_precision:master=no"],
        opens: None,
        quality: "within seeds of AdamW where states alone are 8-bit (Dettmers et al. 2022, arXiv:2110.02861); here weights are 16-bit without a master copy",
    },
    Family {
        name: "MicroAdam",
        choices: &["microadam", "mixed_precision:master=no"],
        opens: None,
        quality: "Llama-2-7B on GSM8k 34.06 % beside 33.74 % of 8-bit AdamW, four seeds (the NanoAdam paper's rerun)",
    },
    Family {
        name: "GaLore, 8-bit, layer-wise",
        choices: &[
            "galore:rank=1024,bits=8,gap=500",
            "mixed_precision:master=no",
        ],
        opens: None,
        quality: "GLUE in an hour 84.38 beside 83.63 of full training (LSP-Offload's table, arXiv:2406.10181); HumanEval-X 36.4 beside 45.5",
    },
    Family {
        name: "LSP-Offload",
        choices: &["lsp_offload", "mixed_precision:master=no"],
        opens: None,
        quality: "HumanEval-X 45.6 beside 45.5 of full training, deepseek-coder-1.3b, each after 120 h; GLUE in an hour 85.53 beside 83.63 (its authors' tables, arXiv:2406.10181)",
    },
    Family {
        name: "LoRA",
        choices: &["lora"],
        opens: None,
        quality: "HumanEval-X 39.3 beside 45.5 of full training, deepseek-coder-1.3b (LSP-Offload's table, arXiv:2406.10181)",
    },
    Family {
        name: "QLoRA",
        choices: &["nf4_weights", "lora"],
        opens: None,
        quality: "as 16-bit LoRA in its authors' tests (Dettmers et al. 2023, arXiv:2305.14314)",
    },
    Family {
        name: "8-bit activations",
        choices: &[],
        opens: Some("compress_activations"),
        quality: "\"negligible accuracy loss\" at 2 bits on average, models of vision (its authors, Chen et al. 2021, arXiv:2104.14129)",
    },
    Family {
        name: "MeZO",
        choices: &["zo_sgd:in_place=yes"],
        opens: None,
        quality: "within 1 % of fine-tuning on 7 of 11 tasks of OPT-13B, in 20,000 steps and more (Malladi et al. 2023, arXiv:2305.17333)",
    },
];

impl Family {
    /// How its results may differ.
    pub fn class(&self) -> Exactness {
        let choices = self
            .choices
            .iter()
            .filter_map(|text| Choice::parse(text).ok());
        let class = |choice: Choice| choice.behind().map(|t| t.card().exactness).ok();
        choices.filter_map(class).max().unwrap_or(Exactness::Lossy)
    }

    /// Whether `plan` is one of its plans.
    pub fn is_in(&self, plan: &Plan) -> bool {
        let opened = |technique| plan.choices.iter().any(|c| c.technique == technique);
        self.opens.is_none_or(opened)
    }
}

/// The families that `request` leaves open.
pub fn open(request: &Request) -> &'static [Family] {
    let open = request.allow == Exactness::Lossy && !request.fixed.iter().any(Choice::is_rule);
    if open { FAMILIES } else { &[] }
}

/// `request` with the choices of `family` made.
///
/// # Errors
/// Where a choice cannot be read.
pub fn request(family: &Family, request: &Request) -> Result<Request> {
    let sixteen = request.job.precision != Precision::F32;
    let scaled = request.job.precision == Precision::Fp16;
    let clipped = request.fixed.iter().any(|c| c.technique == "clip");
    let mut all = match family.opens {
        Some(_) => request.clone(),
        None => exact(request),
    };
    if let Some(name) = family.opens
        && decides(request, &Choice::new(name, "*", &[]))
    {
        let next = "leave that to the search, or go without this method";
        return Err(Error::value(
            "method",
            family.name,
            "is fixed already",
            next,
        ));
    }
    for text in family.choices {
        let text = match *text {
            text if text.starts_with("mixed_precision") && !sixteen => continue,
            "lsp_offload" if scaled || clipped => "lsp_offload:schedule=after".to_string(),
            text if scaled => text.replace("master=no", "dtype=fp16,master=no"),
            text => text.to_string(),
        };
        let choice = Choice::parse(&text)?;
        if !decides(request, &choice) {
            all.fixed.push(choice);
        }
    }
    Ok(all)
}
