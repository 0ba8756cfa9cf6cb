//! A change of a text, for people.

use similar::TextDiff;

/// The change as a unified diff with three lines around each hunk; empty when nothing changes. Only the path's name stands in its header, so
/// that it can be read by `patch` where the folder is the current one.
pub(crate) fn unified(path: &str, old: Option<&str>, new: Option<&str>) -> String {
    if old == new {
        return String::new();
    }
    let name = |text: Option<&str>| if text.is_some() { path.to_owned() } else { "/dev/null".to_owned() };
    let diff = TextDiff::from_lines(old.unwrap_or(""), new.unwrap_or(""));
    diff.unified_diff().context_radius(3).header(&name(old), &name(new)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_line_stands_between_its_neighbours() {
        let diff = unified("pvelet", Some("a\nb\nc\n"), Some("a\nB\nc\n"));
        assert_eq!(diff, "--- pvelet\n+++ pvelet\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n");
    }

    #[test]
    fn a_new_file_and_a_removed_one_are_told_as_such() {
        assert_eq!(unified("f", None, Some("a\n")), "--- /dev/null\n+++ f\n@@ -0,0 +1 @@\n+a\n");
        assert_eq!(unified("f", Some("a\n"), None), "--- f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n");
        assert_eq!(unified("f", Some("a\n"), Some("a\n")), "");
    }
}
