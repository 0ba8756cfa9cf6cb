//! What of the API may be shown by `Debug`: user data may hold keys and tokens, and a request is easily written to a log.

use std::fmt;

use crate::v1::CloudInit;

impl fmt::Debug for CloudInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All of it, so that a field that is added cannot be forgotten here.
        let Self { user, ssh_keys, ip_configs, nameservers, search_domain, user_data } = self;
        f.debug_struct("CloudInit")
            .field("user", user)
            .field("ssh_keys", ssh_keys)
            .field("ip_configs", ip_configs)
            .field("nameservers", nameservers)
            .field("search_domain", search_domain)
            .field("user_data", &user_data.as_ref().map(|data| format!("{} bytes", data.len())))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{CloneVmRequest, VmConfig};

    #[test]
    fn user_data_is_not_shown() {
        let cloud_init = CloudInit { user_data: Some(b"token: s3cret".to_vec()), user: "ann".to_owned(), ..CloudInit::default() };
        let config = VmConfig { cloud_init: Some(cloud_init), ..VmConfig::default() };
        let shown = format!("{:?}", CloneVmRequest { config: Some(config), ..CloneVmRequest::default() });
        assert!(shown.contains("13 bytes") && shown.contains("ann"), "{shown}");
        assert!(!shown.contains("s3cret") && !shown.contains("115, 51"), "{shown}");
    }
}
