//! A kubeconfig: with what the kubelet goes to the API server.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

/// How the kubelet authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// With a certificate in a file; relative to the kubeconfig's folder.
    File(PathBuf),
    /// With one in the kubeconfig itself, PEM.
    Inline(Vec<u8>),
    /// With something else.
    Other(&'static str),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: String,
    contexts: Vec<Named>,
    users: Vec<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    context: Option<Context>,
    user: Option<User>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    user: String,
}

/// Never printed: it may hold a token.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    token: Option<serde::de::IgnoredAny>,
    #[serde(rename = "tokenFile")]
    token_file: Option<serde::de::IgnoredAny>,
    exec: Option<serde::de::IgnoredAny>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").finish_non_exhaustive()
    }
}

/// Reads the credentials of the current context. Errors: what is wrong with the file; values are not quoted.
pub(super) fn credentials(bytes: &[u8]) -> Result<Credentials, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "no UTF-8")?;
    let config: Kubeconfig = serde_norway::from_str(text).map_err(|e| match e.location() {
        // What the parser says may quote a secret.
        Some(at) => format!("line {}, column {}: no kubeconfig", at.line(), at.column()),
        None => "no kubeconfig".to_owned(),
    })?;
    if config.current_context.is_empty() {
        return Err("it has no current-context".into());
    }
    let context = config.contexts.into_iter().find(|c| c.name == config.current_context).and_then(|c| c.context);
    let context = context.ok_or_else(|| format!("its current-context '{}' is not among its contexts", config.current_context))?;
    let user = config.users.into_iter().find(|u| u.name == context.user).and_then(|u| u.user);
    let user = user.ok_or_else(|| format!("its user '{}' is not among its users", context.user))?;
    // Where both are given the data wins.
    if let Some(data) = user.client_certificate_data.filter(|d| !d.is_empty()) {
        let pem = STANDARD.decode(data.split_whitespace().collect::<String>()).map_err(|_| "its client-certificate-data is no base64")?;
        return Ok(Credentials::Inline(pem));
    }
    match user {
        User { client_certificate: Some(path), .. } if !path.as_os_str().is_empty() => Ok(Credentials::File(path)),
        User { exec: Some(_), .. } => Ok(Credentials::Other("a program")),
        User { token: Some(_), .. } | User { token_file: Some(_), .. } => Ok(Credentials::Other("a token")),
        _ => Err(format!("its user '{}' has no credentials", context.user)),
    }
}
