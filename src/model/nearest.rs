//! What an architecture that this build does not run is nearest to: for the refusal alone, nothing is tried.

use super::Architecture;

/// Relatives whose names hide it, and what is different in them.
const RELATIVES: [(&[&str], Architecture, &str); 8] = [
    (&["deepseek32", "deepseek3_2", "deepseek_v32", "glm-dsa", "glm_moe_dsa"], Architecture::Deepseek2, INDEXED),
    (&["deepseek4", "deepseek_v4"], Architecture::Deepseek2, "its attention compresses the context"),
    (&["mistral-large4", "mistral_large4"], Architecture::Mistral4, INDEXED),
    (&["gemma4", "gemma3n"], Architecture::Gemma3, "it has embeddings of their own for each layer"),
    (&["llama4"], Architecture::Llama, "some of its layers have no rotation"),
    (&["qwen3vl", "qwen2vl"], Architecture::Qwen3, "it sees images"),
    (&["qwen3vlmoe"], Architecture::Qwen3Moe, "it sees images"),
    (&["kimi-linear"], Architecture::Deepseek2, "most of its layers are recurrent"),
];
const INDEXED: &str = "an indexer chooses which tokens are attended to";

/// Letters that two names must begin with alike to be relatives.
const ALIKE: usize = 4;

/// The nearest architecture that this build runs, and what is different, empty where that is not known. `None` where the name
/// is like no other.
pub(super) fn nearest(found: &str) -> Option<(Architecture, &'static str)> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '_', '.'], "");
    let found = plain(found);
    let known = RELATIVES.iter().find(|(names, ..)| names.iter().any(|name| plain(name) == found));
    if let Some((_, architecture, other)) = known {
        return Some((*architecture, other));
    }
    let alike = |name: &str| plain(name).bytes().zip(found.bytes()).take_while(|(a, b)| a == b).count();
    // Of equally near ones the shortest name: the plainest model of the family.
    let order =
        |architecture: &Architecture| (alike(architecture.name()), std::cmp::Reverse(architecture.name().len()));
    let nearest = Architecture::ALL.into_iter().max_by_key(order)?;
    (alike(nearest.name()) >= ALIKE).then_some((nearest, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relatives_are_known_by_table_and_by_name() {
        let name = |found| nearest(found).map(|(nearest, _)| nearest.name());
        for found in ["deepseek32", "deepseek3_2", "DeepSeek-3.2", "glm-dsa", "deepseek4", "kimi-linear"] {
            assert_eq!(name(found), Some("deepseek2"), "{found}");
        }
        assert_eq!(name("qwen3vlmoe"), Some("qwen3moe"));
        assert_eq!(name("qwen35-next"), Some("qwen35"));
        assert_eq!(name("minimax-m3"), Some("minimax-m2"));
        assert_eq!(name("phi3v"), Some("phi3"));
        assert_eq!(name("mamba2"), None);
        assert_eq!(name(""), None);
        assert!(nearest("glm-dsa").unwrap().1.contains("indexer"));
    }
}
