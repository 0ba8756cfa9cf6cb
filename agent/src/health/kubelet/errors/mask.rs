//! Lines of a log, fit to be shown: without secrets, without what differs each time.

use std::borrow::Cow;

/// What stands for a secret.
const MASK: &str = "***";
/// The most of a line that is shown, characters.
const LONGEST: usize = 240;
/// Words after which a secret stands.
const KEYS: [&str; 8] = ["token", "password", "passwd", "secret", "authorization", "apikey", "api_key", "api-key"];

/// The line without klog's header (severity, date, time, thread), with secrets masked, cut.
pub(super) fn shown(line: &str) -> String {
    let line = without_header(line.trim());
    let line = masked(line);
    let mut text: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    if line.chars().nth(LONGEST).is_some() {
        text.push('…');
    }
    text
}

/// `E1129 02:06:27.123456    1234 kubelet.go:12] "..."` without all before the file.
fn without_header(line: &str) -> &str {
    let mut words = line.splitn(3, ' ');
    let head = words.next().unwrap_or_default();
    let is_header = head.len() == 5 && head.starts_with(['I', 'W', 'E', 'F']) && head[1..].bytes().all(|b| b.is_ascii_digit());
    match line.split_once("] ").filter(|_| is_header) {
        Some((header, _)) => {
            let file = header.rfind(' ').map_or(0, |at| at + 1);
            &line[file..]
        }
        None => line,
    }
}

/// Tokens, passwords and keys, masked.
pub(super) fn masked(line: &str) -> Cow<'_, str> {
    if line.contains("PRIVATE KEY") {
        return Cow::Owned(format!("{} {MASK}", line.split("-----BEGIN").next().unwrap_or_default()));
    }
    let mut out = String::with_capacity(line.len());
    let (mut rest, mut secret_follows) = (line, false);
    while !rest.is_empty() {
        let word_end = rest.find(is_break).unwrap_or(rest.len());
        if word_end == 0 {
            let end = rest.find(|c| !is_break(c)).unwrap_or(rest.len());
            let breaks = &rest[..end];
            // A comma or a line's end closes what a key began.
            if breaks.contains([',', ';', '}', ']', '&']) {
                secret_follows = false;
            }
            out.push_str(breaks);
            rest = &rest[end..];
            continue;
        }
        let word = &rest[..word_end];
        rest = &rest[word_end..];
        let lower = word.to_ascii_lowercase();
        let scheme = ["bearer", "basic"].contains(&lower.as_str());
        let assigned = rest.trim_start_matches(['"', '\'', '\\']).starts_with(['=', ':']);
        let key = scheme || (assigned && KEYS.iter().any(|k| lower.ends_with(k)));
        if is_secret(word) || (secret_follows && !key) {
            out.push_str(MASK);
        } else {
            out.push_str(word);
        }
        secret_follows = key;
    }
    Cow::Owned(hide_user_info(&out))
}

fn is_break(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'\\=:,;&?()[]{}<>@|`".contains(c)
}

/// Shapes that only secrets have: signed tokens, bootstrap tokens, long keys.
fn is_secret(word: &str) -> bool {
    let base64 = |w: &str| w.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_+/.".contains(&b));
    if word.starts_with("eyJ") && word.len() > 20 && base64(word) {
        return true;
    }
    let part = |w: &str, n: usize| w.len() == n && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    word.split_once('.').is_some_and(|(id, secret)| part(id, 6) && part(secret, 16) && secret.bytes().any(|b| b.is_ascii_digit()))
}

/// `://user:password@` of a URL.
fn hide_user_info(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/?#\"'".contains(c)).unwrap_or(after.len());
        rest = after;
        if let Some(user) = after[..end].rfind('@') {
            out.push_str(MASK);
            rest = &after[user..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_masked_and_nothing_else() {
        for (line, expected) in [
            ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
            (r#"Headers="Authorization: Basic dXNlcjpwdw==""#, r#"Headers="Authorization: Basic ***==""#),
            (r#"{"token":"s3cr3t","name":"x"}"#, r#"{"token":"***","name":"x"}"#),
            ("token=abc&node=pve1", "token=***&node=pve1"),
            (r#"err="bad \"bootstrapToken\": \"hunter2\" given""#, r#"err="bad \"bootstrapToken\": \"***\" given""#),
            ("password: hunter2, user: me", "password: ***, user: me"),
            ("using 07401b.f395accd246ae52d to join", "using *** to join"),
            ("jwt eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.eyJpc3MiOiJrdWJlIn0.c2ln here", "jwt *** here"),
            ("https://me:hunter2@registry.example/v2/", "https://***@registry.example/v2/"),
            ("the token is expired", "the token is expired"),
            ("dial tcp 10.0.0.1:6443: connect: connection refused", "dial tcp 10.0.0.1:6443: connect: connection refused"),
            (r#"image="registry.k8s.io/pause:3.6""#, r#"image="registry.k8s.io/pause:3.6""#),
            (r#"secret "default-token-abc" not found"#, r#"secret "default-token-abc" not found"#),
            ("pod 'kube-system/coredns-5dd5756b68-abcde'", "pod 'kube-system/coredns-5dd5756b68-abcde'"),
        ] {
            assert_eq!(masked(line), expected);
        }
        assert_eq!(masked("key -----BEGIN RSA PRIVATE KEY-----\nMIIE"), "key  ***");
    }

    #[test]
    fn lines_lose_what_differs_each_time() {
        let line = "E1129 02:06:27.123456    1234 kubelet.go:2862] \"Container runtime network not ready\" err=\"x\"";
        assert_eq!(shown(line), "kubelet.go:2862] \"Container runtime network not ready\" err=\"x\"");
        assert_eq!(shown("Error: failed to run Kubelet [x] y"), "Error: failed to run Kubelet [x] y");
        assert_eq!(shown("E1129"), "E1129");
        assert_eq!(shown("a\tb\nc\u{1b}[31md"), "a b c [31md");
        assert_eq!(shown(&"ä".repeat(500)).chars().count(), LONGEST + 1);
    }

    proptest! {
        #[test]
        fn no_line_ends_the_masking_badly(line in "\\PC{0,200}") {
            let text = shown(&line);
            prop_assert!(text.chars().count() <= LONGEST + 1);
        }

        #[test]
        fn secrets_are_masked_wherever_they_stand(
            before in "[ -~]{0,30}",
            after in "[ -~]{0,30}",
            secret in "[A-Z][a-z0-9]{15,30}",
            key in prop::sample::select(vec!["token=", "password: ", "\"token\":\"", "Authorization: Bearer ", "client_secret="]),
        ) {
            let line = format!("{before} {key}{secret} {after}");
            prop_assume!(!before.contains(&secret) && !after.contains(&secret));
            prop_assert!(!masked(&line).contains(&secret), "{line} -> {}", masked(&line));
        }

        #[test]
        fn tokens_are_masked_by_their_shape(before in "[ -~]{0,30}", id in "[a-z0-9]{6}", secret in "[a-z0-9]{8}[0-9][a-z0-9]{7}", body in "[a-zA-Z0-9_-]{30,60}") {
            let line = format!("{before} {id}.{secret}, x");
            prop_assert!(!masked(&line).contains(&secret));
            let jwt = format!("{before} \"eyJ{body}.eyJ{body}.{body}\"");
            let hidden = masked(&jwt);
            prop_assert!(!hidden.contains(&body), "{hidden}");
        }
    }
}
