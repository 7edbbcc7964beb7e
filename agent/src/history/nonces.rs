//! Which nonces were used, so that a request is used once: across restarts, whatever the clock does, and after a backup
//! was restored.
//!
//! A nonce is kept while its request is valid, and [`KEPT_SECONDS`] longer. What is forgotten then leaves its time of
//! expiry behind: when the clock goes back, a request that expires at a forgotten time may be a replay, and is refused.

use rusqlite::Transaction;

use super::{History, HistoryError, sql};

/// How much longer than its request is valid a nonce is kept. While the clock goes back by less, nothing is lost: a
/// replay is known as one, and every other request is let in.
const KEPT_SECONDS: i64 = 3600;
/// Spans of forgotten time that lie no further apart become one, so that a clock that goes on leaves few of them.
const JOINED_WITHIN_SECONDS: i64 = 300;
/// How many spans of forgotten time are kept apart. Beyond, the two oldest become one.
const SPANS_MAX: usize = 32;

/// Whether a request may be let in by its nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonceUse {
    /// It was not used before, and is marked used now.
    First,
    /// It was used before.
    Again,
    /// Nonces of its time are forgotten: the clock went back, and it may have been used before.
    Forgotten,
    /// It was signed before a backup was restored, and the nonces that were used since the backup are not known.
    BeforeRestore,
}

/// A request's nonce, with the times that its signature covers, in Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce {
    /// The public key that signed.
    pub key: String,
    /// The nonce.
    pub nonce: String,
    /// When the request was signed.
    pub created: i64,
    /// The last second in which it is valid.
    pub expires: i64,
}

impl History {
    /// Marks a nonce as used, and forgets those that expired long before `now` (Unix seconds).
    ///
    /// # Errors
    /// The database cannot be written: the request must then be refused.
    pub async fn use_nonce(&self, nonce: Nonce, now: i64) -> Result<NonceUse, HistoryError> {
        self.with(move |connection| {
            let transaction = connection.transaction().map_err(sql("begin to record a nonce"))?;
            let seen = use_in(&transaction, &nonce, now).map_err(sql("record a nonce"))?;
            transaction.commit().map_err(sql("commit a nonce"))?;
            Ok(seen)
        })
        .await
    }
}

fn use_in(transaction: &Transaction<'_>, nonce: &Nonce, now: i64) -> rusqlite::Result<NonceUse> {
    forget(transaction, now.saturating_sub(KEPT_SECONDS))?;
    let is_before_restore: bool = transaction
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM restored WHERE at >= ?1)")?
        .query_row([nonce.created], |row| row.get(0))?;
    if is_before_restore {
        return Ok(NonceUse::BeforeRestore);
    }
    let is_forgotten: bool = transaction
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM forgotten_nonces WHERE ?1 BETWEEN first AND last)")?
        .query_row([nonce.expires], |row| row.get(0))?;
    if is_forgotten {
        return Ok(NonceUse::Forgotten);
    }
    let added = transaction
        .prepare_cached("INSERT INTO nonce (key, nonce, expires) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
        .execute((&nonce.key, &nonce.nonce, nonce.expires))?;
    Ok(if added == 1 {
        NonceUse::First
    } else {
        NonceUse::Again
    })
}

/// Removes the nonces that expired before a time, and remembers which times those were.
fn forget(transaction: &Transaction<'_>, before: i64) -> rusqlite::Result<()> {
    let gone: Option<(i64, i64)> = transaction
        .prepare_cached("SELECT min(expires), max(expires) FROM nonce WHERE expires < ?1")?
        .query_row([before], |row| {
            Ok(row.get::<_, Option<i64>>(0)?.zip(row.get::<_, Option<i64>>(1)?))
        })?;
    let Some(gone) = gone else { return Ok(()) };
    let known: Vec<(i64, i64)> = transaction
        .prepare_cached("SELECT first, last FROM forgotten_nonces")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    transaction.execute("DELETE FROM forgotten_nonces", [])?;
    for (first, last) in with_span(known, gone) {
        transaction
            .prepare_cached("INSERT INTO forgotten_nonces (first, last) VALUES (?1, ?2)")?
            .execute((first, last))?;
    }
    transaction
        .prepare_cached("DELETE FROM nonce WHERE expires < ?1")?
        .execute([before])?;
    Ok(())
}

/// Adds a span to others, and joins neighbours.
fn with_span(mut spans: Vec<(i64, i64)>, new: (i64, i64)) -> Vec<(i64, i64)> {
    spans.push(new);
    spans.sort_unstable();
    let mut joined: Vec<(i64, i64)> = Vec::with_capacity(spans.len());
    for (first, last) in spans {
        match joined.last_mut() {
            Some(before) if first.saturating_sub(before.1) <= JOINED_WITHIN_SECONDS => {
                before.1 = before.1.max(last)
            }
            Some(_) | None => joined.push((first, last)),
        }
    }
    while joined.len() > SPANS_MAX {
        let (oldest, _) = joined.remove(0);
        if let Some(next) = joined.first_mut() {
            next.0 = oldest;
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_795_000_000;
    const TEN_YEARS: i64 = 10 * 365 * 86_400;

    struct Gate {
        history: History,
        _folder: tempfile::TempDir,
    }

    impl Gate {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let history = History::open(&folder.path().join("history.db")).unwrap();
            Self {
                history,
                _folder: folder,
            }
        }

        /// A request that is signed at a time and arrives when the host's clock says `now`.
        async fn request(&self, nonce: &str, created: i64, now: i64) -> NonceUse {
            let nonce = Nonce {
                key: "k".to_owned(),
                nonce: nonce.to_owned(),
                created,
                expires: created + 60,
            };
            self.history.use_nonce(nonce, now).await.unwrap()
        }

        async fn rows(&self, table: &'static str) -> i64 {
            let count = move |connection: &mut rusqlite::Connection| {
                connection
                    .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
                    .map_err(sql("count"))
            };
            self.history.with(count).await.unwrap()
        }
    }

    #[tokio::test]
    async fn nonces_are_forgotten_and_no_honest_request_is_ever_refused_while_the_clock_goes_on() {
        let gate = Gate::new();
        // Two days, a request every 97 s; the caller's clock is up to 25 s behind or ahead.
        for n in 0..1780_i64 {
            let now = T + n * 97;
            let created = now + (n % 51) - 25;
            assert_eq!(
                gate.request(&format!("n{n}"), created, now).await,
                NonceUse::First,
                "{n}"
            );
            assert_eq!(
                gate.request(&format!("n{n}"), created, now).await,
                NonceUse::Again
            );
        }
        assert!(gate.rows("nonce").await <= KEPT_SECONDS / 97 + 3);
        assert_eq!(gate.rows("forgotten_nonces").await, 1);
    }

    #[tokio::test]
    async fn a_jump_forward_and_back_lets_no_recorded_request_in_again() {
        for jump in [3600, 86_400, TEN_YEARS] {
            let gate = Gate::new();
            assert_eq!(gate.request("recorded", T, T).await, NonceUse::First);
            // A caller with the same wrong clock makes the agent forget.
            assert_eq!(gate.request("far", T + jump, T + jump).await, NonceUse::First);
            let again = gate.request("recorded", T, T + 30).await;
            assert!(
                matches!(again, NonceUse::Again | NonceUse::Forgotten),
                "{jump}: {again:?}"
            );
            // Who signs later than the recorded one is let in.
            assert_eq!(
                gate.request("new", T + 31, T + 31).await,
                NonceUse::First,
                "{jump}"
            );
            assert_eq!(
                gate.request("far", T + jump, T + jump).await,
                NonceUse::Again,
                "{jump}"
            );
        }
    }

    #[tokio::test]
    async fn a_clock_that_goes_back_lets_no_recorded_request_in_again() {
        for back in [60, 3600, 86_400, TEN_YEARS] {
            let gate = Gate::new();
            assert_eq!(gate.request("recorded", T, T).await, NonceUse::First);
            // Time goes on so far, and then the clock is set back.
            assert_eq!(gate.request("later", T + back, T + back).await, NonceUse::First);
            let again = gate.request("recorded", T, T).await;
            assert!(
                matches!(again, NonceUse::Again | NonceUse::Forgotten),
                "{back}: {again:?}"
            );
        }
    }

    #[test]
    fn spans_stay_few_and_never_lose_a_forgotten_time() {
        let mut spans = Vec::new();
        for n in 0..200 {
            spans = with_span(spans, (n * 10_000, n * 10_000 + 5));
        }
        assert_eq!(spans.len(), SPANS_MAX);
        for n in 0..200 {
            assert!(
                spans
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&(n * 10_000 + 3)))
            );
        }
        // The future stays apart.
        assert_eq!(with_span(vec![(0, 9)], (TEN_YEARS, TEN_YEARS + 1)).len(), 2);
    }
}
