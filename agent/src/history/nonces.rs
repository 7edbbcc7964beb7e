//! Which nonces were used, so that a request is used once, also across restarts.

use super::{History, HistoryError, sql};

/// Whether a nonce was fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonceUse {
    /// It was not used before, and is marked used now.
    First,
    /// It was used before.
    Again,
}

impl History {
    /// Marks a nonce as used, and forgets those that expired before `now` (Unix seconds).
    ///
    /// # Errors
    /// The database cannot be written: the request must then be refused.
    pub async fn use_nonce(
        &self,
        key: String,
        nonce: String,
        expires: i64,
        now: i64,
    ) -> Result<NonceUse, HistoryError> {
        self.with(move |connection| {
            let transaction = connection.transaction().map_err(sql("begin to record a nonce"))?;
            transaction
                .prepare_cached("DELETE FROM nonce WHERE expires < ?1")
                .and_then(|mut statement| statement.execute([now]))
                .map_err(sql("forget expired nonces"))?;
            let added = transaction
                .prepare_cached(
                    "INSERT INTO nonce (key, nonce, expires) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                )
                .and_then(|mut statement| statement.execute((&key, &nonce, expires)))
                .map_err(sql("record a nonce"))?;
            transaction.commit().map_err(sql("commit a nonce"))?;
            Ok(if added == 1 {
                NonceUse::First
            } else {
                NonceUse::Again
            })
        })
        .await
    }
}
