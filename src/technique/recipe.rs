//! Named sets of choices: methods that are combinations of techniques and no code of their own.

/// A set of choices with a name.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Its name on the command line.
    pub name: &'static str,
    /// Other names it answers to.
    pub aliases: &'static [&'static str],
    /// What it does, in one sentence.
    pub summary: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// Its choices, as `--fix` takes them.
    pub composed_of: &'static [&'static str],
}

/// All recipes, in the order they are shown.
pub const RECIPES: &[Recipe] = &[
    Recipe {
        name: "zero_offload",
        aliases: &["cpu_adam"],
        summary: "keeps optimizer state in host memory and updates there; gradients go down, new weights come back",
        source: "Ren et al. 2021, arXiv:2101.06840",
        composed_of: &[
            "offload:what=gradients",
            "offload:what=optimizer,update=host",
        ],
    },
    Recipe {
        name: "lomo",
        aliases: &[],
        summary: "plain gradient descent during the backward pass: no state, and few gradients at once",
        source: "Lv et al. 2023, arXiv:2306.09782",
        composed_of: &["sgd:momentum=0", "fused_update"],
    },
    Recipe {
        name: "qlora",
        aliases: &[],
        summary: "low-rank updates of all linear layers beside weights held in 4 bits",
        source: "Dettmers et al. 2023, arXiv:2305.14314",
        composed_of: &["lora:targets=all-linear", "nf4_weights"],
    },
    Recipe {
        name: "mezo",
        aliases: &[],
        summary: "zeroth-order descent that moves the weights where they are: the memory of inference",
        source: "Malladi et al. 2023, arXiv:2305.17333",
        composed_of: &["zo_sgd:in_place=yes"],
    },
];

/// The recipe called `name`, or by one of its aliases.
pub fn recipe(name: &str) -> Option<&'static Recipe> {
    RECIPES
        .iter()
        .find(|r| r.name == name || r.aliases.contains(&name))
}
