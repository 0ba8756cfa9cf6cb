//! Whether ifupdown2 takes a text, asked as soon as the text is known: it goes on beside the plan's second look, the lock and the checkpoint.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use crate::{error::Error, host::net::Network};

/// A check under way. Dropped, it is ended.
#[derive(Debug)]
pub(super) struct TextCheck(Option<AbortOnDropHandle<Result<(), Error>>>);

impl TextCheck {
    /// Begins to check; `None`: there will be no file. Must be called on a runtime.
    pub(super) fn begin(net: &Arc<dyn Network>, text: Option<String>) -> Self {
        let net = Arc::clone(net);
        Self(text.map(|text| AbortOnDropHandle::new(tokio::spawn(async move { net.check_text(&text).await }))))
    }

    /// Waits for the verdict. Errors: `NetworkFailed`, with what ifupdown2 says.
    pub(super) async fn passed(self) -> Result<(), Error> {
        match self.0 {
            None => Ok(()),
            Some(check) => check.await.unwrap_or_else(|e| Err(Error::Internal(format!("the check of the declaration: {e}")))),
        }
    }
}
