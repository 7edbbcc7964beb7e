//! The configuration in force, and what is looked up in it for every request.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use deploy_proto::signing::{AuthorityNames, BadAuthority, PublicKey};

use crate::config::{Config, Key};

/// The configuration in force. SIGHUP puts a new one in its place; what is under way keeps the one it started with.
#[derive(Debug)]
pub struct Settings {
    current: RwLock<Arc<Current>>,
}

#[derive(Debug)]
struct Current {
    config: Arc<Config>,
    names: Arc<AuthorityNames>,
    keys: HashMap<PublicKey, Arc<Key>>,
}

impl Current {
    fn new(config: Config) -> Result<Self, BadAuthority> {
        let names = Arc::new(AuthorityNames::new(
            config.server.names.iter().map(String::as_str),
        )?);
        let keys = config
            .keys
            .iter()
            .map(|key| (key.public, Arc::new(key.clone())))
            .collect();
        Ok(Self {
            config: Arc::new(config),
            names,
            keys,
        })
    }
}

impl Settings {
    /// The settings of the start.
    ///
    /// # Errors
    /// A name in `server.names` is no host name.
    pub fn new(config: Config) -> Result<Self, BadAuthority> {
        Ok(Self {
            current: RwLock::new(Arc::new(Current::new(config)?)),
        })
    }

    /// Puts a new configuration in force.
    ///
    /// # Errors
    /// A name in `server.names` is no host name; the old configuration stays.
    pub fn replace(&self, config: Config) -> Result<(), BadAuthority> {
        let current = Arc::new(Current::new(config)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.current().config)
    }

    /// The names that `@authority` may say.
    pub fn names(&self) -> Arc<AuthorityNames> {
        Arc::clone(&self.current().names)
    }

    /// The caller's key with this public key, whether or not it has expired.
    pub fn key(&self, public: &PublicKey) -> Option<Arc<Key>> {
        self.current().keys.get(public).cloned()
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}
