//! From a tag to its digest, and from a digest to an image on this host: never by a tag alone, which may move between.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use deploy_proto::image::{Digest, ImageRef};
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Engine, Error, LocalImage, Result};
use crate::deploy::platform::Platform;

/// How long the registry may take to name a tag's digest: 20 ms as a rule; the Engine itself gives up on a dead one
/// after 15 s.
pub const LOOK_UP_LIMIT: Duration = Duration::from_secs(20);
/// How long a pull may stand still. The Engine retries a broken layer for about 50 s, and says so, before it gives up.
pub const PULL_STALL: Duration = Duration::from_secs(60);
/// How long the Engine may take to say that it is there, when nothing comes through it.
const THERE_LIMIT: Duration = Duration::from_secs(5);
/// The shortest time between two reports of progress: ten a second look smooth.
const REPORT_PAUSE: Duration = Duration::from_millis(100);

/// What a registry has under an image's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteImage {
    /// The digest of its manifest, or of the list of its manifests.
    pub digest: Digest,
    /// What there is in it; attestations are listed as unknown/unknown. Empty when the registry does not say.
    pub platforms: Vec<Platform>,
}

/// How a pull ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullEnd {
    /// The image was here under that digest; the registry was not asked.
    AlreadyHere,
    /// It was pulled.
    Pulled {
        /// How many bytes came; layers that were here already do not count.
        bytes: u64,
    },
}

impl Engine {
    /// Asks the image's registry what it has under its tag (`latest` without one) or digest. Nothing is pulled.
    ///
    /// # Errors
    /// [`Error::Registry`] with the kind of trouble.
    pub async fn remote_image(&self, image: &ImageRef) -> Result<RemoteImage> {
        let credential = self.credential_for(image.repository()).await?;
        let name = match (image.digest(), image.tag()) {
            (Some(digest), _) => format!("{}@{digest}", image.repository()),
            (None, tag) => format!("{}:{}", image.repository(), tag.unwrap_or("latest")),
        };
        const DOING: &str = "look up an image";
        let docker = self.negotiated().await?;
        let asked = docker.inspect_registry_image(&name, credential.map(Into::into));
        let said = match timeout(LOOK_UP_LIMIT, asked).await {
            Ok(said) => said.map_err(|source| self.explained(DOING, source).about(image))?,
            Err(_) => return Err(self.who_is_silent(image, LOOK_UP_LIMIT).await),
        };
        let digest = said.descriptor.digest.and_then(|digest| digest.parse().ok());
        let digest = digest.ok_or(Error::Lacking {
            doing: DOING,
            what: "digest",
        })?;
        let platforms = said.platforms.into_iter().map(|platform| {
            Platform::new(
                &platform.os.unwrap_or_default(),
                &platform.architecture.unwrap_or_default(),
            )
        });
        Ok(RemoteImage {
            digest,
            platforms: platforms.collect(),
        })
    }

    /// Makes sure that `repository@digest` is on this host. When it is here already no network is used. No tag is given or
    /// moved: the push may still be refused.
    ///
    /// `platform` (`linux/arm64`) chooses among what the image is built for; without it the Engine takes its own.
    /// `progress` is told bytes done and bytes known to be needed, at most ten times a second and once at the end.
    ///
    /// # Errors
    /// [`Error::NoDigest`] without a digest; [`Error::Stalled`] after [`PULL_STALL`] without progress.
    pub async fn pull(
        &self,
        image: &ImageRef,
        platform: Option<&str>,
        progress: impl Fn(u64, u64),
    ) -> Result<PullEnd> {
        let digest = image.digest().ok_or_else(|| Error::NoDigest {
            image: Box::new(image.clone()),
        })?;
        let pinned = format!("{}@{digest}", image.repository());
        let is_wanted = |here: &LocalImage| {
            let wanted = platform.and_then(Platform::parse);
            wanted.is_none_or(|wanted| wanted == here.platform)
        };
        if let Some(here) = self.image(&pinned).await?.filter(is_wanted) {
            accept(image, &here)?;
            return Ok(PullEnd::AlreadyHere);
        }
        let credential = self.credential_for(image.repository()).await?;
        let options = CreateImageOptionsBuilder::new()
            .from_image(image.repository())
            .tag(digest.as_str())
            .platform(platform.unwrap_or_default())
            .build();
        let said = self
            .negotiated()
            .await?
            .create_image(Some(options), None, credential.map(Into::into))
            .map(|info| info.map_err(|source| self.explained("pull an image", source)));
        let bytes = match follow(image, said, PULL_STALL, progress).await {
            Err(Error::Stalled { limit, .. }) => return Err(self.who_is_silent(image, limit).await),
            followed => followed?,
        };
        let here = self.image(&pinned).await?;
        let here = here.ok_or_else(|| Error::NotThere {
            image: Box::new(image.clone()),
        })?;
        accept(image, &here)?;
        Ok(PullEnd::Pulled { bytes })
    }

    /// Nothing came for so long: from the registry, or from an Engine that hangs.
    async fn who_is_silent(&self, image: &ImageRef, limit: Duration) -> Error {
        match timeout(THERE_LIMIT, self.ping()).await {
            Ok(Ok(())) => Error::Stalled {
                image: Box::new(image.clone()),
                limit,
            },
            Ok(Err(error)) => error,
            Err(_) => {
                self.note_outage();
                Error::NoAnswer {
                    doing: "get an image",
                    limit,
                }
            }
        }
    }
}

/// Checks that an image that is here is the one that was asked for.
fn accept(image: &ImageRef, here: &LocalImage) -> Result<()> {
    let mut digests = here.digests_in(image.repository());
    if digests.any(|digest| Some(digest) == image.digest()) {
        Ok(())
    } else {
        Err(Error::NotThere {
            image: Box::new(image.clone()),
        })
    }
}

/// Follows a pull to its end; answers how many bytes came.
async fn follow(
    image: &ImageRef,
    said: impl Stream<Item = Result<CreateImageInfo>>,
    stall: Duration,
    progress: impl Fn(u64, u64),
) -> Result<u64> {
    let mut said = pin!(said);
    let mut layers = Layers::default();
    let mut reported: Option<Instant> = None;
    let mut patience = Instant::now() + stall;
    loop {
        let next = timeout_at(patience, said.next())
            .await
            .map_err(|_| Error::Stalled {
                image: Box::new(image.clone()),
                limit: stall,
            })?;
        let Some(info) = next else { break };
        if layers.take(info.map_err(|error| error.about(image))?) {
            patience = Instant::now() + stall;
        }
        if reported.is_none_or(|at| at.elapsed() >= REPORT_PAUSE) {
            let (done, total) = layers.bytes();
            progress(done, total);
            reported = Some(Instant::now());
        }
    }
    let (done, total) = layers.bytes();
    progress(done, total);
    Ok(done)
}

/// What is known of an image's layers while it is pulled.
#[derive(Default)]
struct Layers {
    by_id: HashMap<String, Layer>,
}

#[derive(Default)]
struct Layer {
    status: String,
    done_bytes: u64,
    total_bytes: u64,
    /// How far it is unpacked: bytes, or seconds in newer Engines.
    unpacked: i64,
}

impl Layers {
    /// Takes one message in, and says whether it shows progress. "Retrying in 5 seconds" does not.
    fn take(&mut self, info: CreateImageInfo) -> bool {
        let (Some(id), Some(status)) = (info.id, info.status) else {
            return true;
        };
        let detail = info.progress_detail.unwrap_or_default();
        let current = detail.current.unwrap_or(0);
        let layer = self.by_id.entry(id).or_default();
        if status.starts_with("Retrying") {
            return false;
        }
        let mut moved = layer.status != status;
        match status.as_str() {
            "Downloading" => {
                let done = u64::try_from(current).unwrap_or(0);
                moved |= done > layer.done_bytes;
                layer.done_bytes = done;
                let total = detail.total.and_then(|total| total.try_into().ok()).unwrap_or(0);
                layer.total_bytes = layer.total_bytes.max(total).max(done);
            }
            "Extracting" => {
                moved |= current > layer.unpacked;
                layer.unpacked = current;
            }
            "Verifying Checksum" | "Download complete" | "Pull complete" => {
                layer.done_bytes = layer.total_bytes;
            }
            _ => {}
        }
        layer.status = status;
        moved
    }

    fn bytes(&self) -> (u64, u64) {
        self.by_id.values().fold((0, 0), |(done, total), layer| {
            (done + layer.done_bytes, total + layer.total_bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures_util::stream;

    use super::*;

    fn info(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        let json = format!(
            r#"{{"id": "{id}", "status": "{status}", "progressDetail": {{"current": {current}, "total": {total}}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn progress_is_the_sum_of_the_layers_and_ends_with_all_of_it() {
        let said = [
            info("a", "Pulling fs layer", 0, 0),
            info("b", "Already exists", 0, 0),
            info("a", "Downloading", 10, 100),
            info("c", "Downloading", 5, 50),
            info("a", "Download complete", 0, 0),
            info("a", "Extracting", 60, 100),
            info("c", "Pull complete", 0, 0),
        ];
        let seen = RefCell::new(Vec::new());
        let image = "r.example/x:v1".parse().unwrap();
        let end = block_on(follow(
            &image,
            stream::iter(said.map(Ok)),
            PULL_STALL,
            |done, total| seen.borrow_mut().push((done, total)),
        ));
        assert_eq!(end.unwrap(), 150);
        assert_eq!(seen.borrow().last(), Some(&(150, 150)));
        // Seven messages in no time are two reports: the first, and the end.
        assert_eq!(seen.borrow().len(), 2);
    }

    #[test]
    fn a_registry_that_stands_still_is_an_error_and_so_is_one_that_only_retries() {
        let image = "r.example/x:v1".parse().unwrap();
        let stall = Duration::from_millis(30);
        let silent = stream::iter([Ok(info("a", "Downloading", 1, 9))]).chain(stream::pending());
        let retrying = stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok(info("a", &format!("Retrying in {n} seconds"), 0, 0)), n + 1))
        });
        for end in [
            block_on(follow(&image, silent, stall, |_, _| {})),
            block_on(follow(&image, retrying, stall, |_, _| {})),
        ] {
            assert!(matches!(end, Err(Error::Stalled { .. })), "{end:?}");
        }
    }

    #[test]
    fn the_engines_error_in_the_middle_is_read_for_its_kind() {
        let image = "r.example/x:v1".parse().unwrap();
        let refused = Error::Refused {
            doing: "pull an image",
            status: 200,
            message: "write /x: no space left on device".into(),
        };
        let said = stream::iter([Ok(info("a", "Downloading", 1, 9)), Err(refused)]);
        let error = block_on(follow(&image, said, PULL_STALL, |_, _| {})).unwrap_err();
        assert_eq!(
            deploy_proto::problem::Problem::from(error).code,
            deploy_proto::problem::Code::HostUnfit
        );
    }
}
