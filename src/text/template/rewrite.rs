//! Small rewrites of a template's source for constructs the engine does not know.
//!
//! `{% generation %}` … `{% endgeneration %}` marks assistant text for training masks and renders as its content. An empty
//! list literal becomes a growing list where the template appends to lists.

/// Name of the function that makes a growing list.
pub(super) const NEW_LIST: &str = "__growing_list";

/// The source the engine is given. Lines keep their numbers.
pub(super) fn for_engine(source: &str) -> String {
    let grows = [".append(", ".extend(", ".insert(", ".pop("].iter().any(|method| source.contains(method));
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = find_open(rest) {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let end = match &tag[..2] {
            "{#" => tag.find("#}").map_or(tag.len(), |end| end + 2),
            "{{" => code_end(tag, "}}"),
            _ => code_end(tag, "%}"),
        };
        let (tag, after) = tag.split_at(end);
        rest = after;
        match statement(tag) {
            Some("generation") => out.push_str(&tag.replacen("generation", "if true", 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            Some("raw") => {
                out.push_str(tag);
                let end = end_of_raw(rest);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ if grows && !tag.starts_with("{#") => push_with_lists(tag, &mut out),
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    out
}

/// Where the next tag, expression or comment opens.
fn find_open(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|two| matches!(two, b"{{" | b"{%" | b"{#"))
}

/// The whole content of a `{% word %}`.
fn statement(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inner.trim_matches(['-', '+']).trim())
}

/// End of a tag, its closing delimiter included; string literals may hold one.
fn code_end(tag: &str, close: &str) -> usize {
    let bytes = tag.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote),
            _ if bytes[at..].starts_with(close.as_bytes()) => return at + 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Position after a string literal that opens at `at`.
fn string_end(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut at = at + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Position of the `{% endraw %}` that ends raw text.
fn end_of_raw(text: &str) -> usize {
    let ends = text.match_indices("{%").map(|(at, _)| at);
    let is_end = |at: &usize| {
        let inner = text[*at + 2..].trim_start_matches(['-', '+']).trim_start();
        inner.starts_with("endraw")
    };
    ends.into_iter().find(is_end).unwrap_or(text.len())
}

/// Copies a tag with each empty list literal replaced.
fn push_with_lists(tag: &str, out: &mut String) {
    let bytes = tag.as_bytes();
    let (mut copied, mut at) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote),
            b'[' => {
                let blanks = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                let close = at + 1 + blanks;
                if bytes.get(close) == Some(&b']') {
                    out.push_str(&tag[copied..at]);
                    out.push_str(NEW_LIST);
                    out.push('(');
                    out.push_str(&tag[at + 1..close]);
                    out.push(')');
                    copied = close + 1;
                    at = close;
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    out.push_str(&tag[copied..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_becomes_its_content() {
        assert_eq!(for_engine("a{%- generation -%}b{% endgeneration %}c"), "a{%- if true -%}b{% endif %}c");
        assert_eq!(for_engine("{{ '{% generation %}' }}"), "{{ '{% generation %}' }}");
        assert_eq!(for_engine("{% raw %}{% generation %}{% endraw %}"), "{% raw %}{% generation %}{% endraw %}");
        assert_eq!(for_engine("{# [] {% generation %} #}{{"), "{# [] {% generation %} #}{{");
    }

    #[test]
    fn empty_lists_grow_where_needed() {
        assert_eq!(for_engine("{% set a = [] %}[]"), "{% set a = [] %}[]");
        let source = "{% set a = [ ] %}{{ a.append('[]') }}[]{{ 'x";
        assert_eq!(for_engine(source), "{% set a = __growing_list( ) %}{{ a.append('[]') }}[]{{ 'x");
    }
}
