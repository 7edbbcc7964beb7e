//! Which images are here, which of them containers were made from, and removing one: never by force.

use std::collections::BTreeSet;
use std::time::Duration;

use bollard::models::ImageSummary;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
};

use super::{ANSWER_LIMIT, Engine, Error, Result};
use crate::deploy::retention::ImageHere;

/// How long the Engine may take to remove one image: it deletes the files of its layers before it answers, and a large one
/// on a slow disk was seen to take half a minute.
const REMOVE_LIMIT: Duration = Duration::from_mins(2);
/// What the Engine writes for a name that an image does not have.
const NO_NAME: &str = "<none>";

/// What became of an image that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// It is not here any more.
    Gone,
    /// The Engine keeps it, because something needs it; its words.
    Kept(String),
}

impl Engine {
    /// All images of this host but those that only other images are made of.
    pub async fn images(&self) -> Result<Vec<ImageHere>> {
        let options = ListImagesOptionsBuilder::new().digests(true).build();
        let all = self
            .call("list the images", ANSWER_LIMIT, |docker| {
                docker.list_images(Some(options))
            })
            .await?;
        Ok(all.into_iter().map(image).collect())
    }

    /// The ids of the images that containers were made from: anybody's, running or not.
    pub async fn images_in_use(&self) -> Result<BTreeSet<String>> {
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let all = self
            .call("list all containers", ANSWER_LIMIT, |docker| {
                docker.list_containers(Some(options))
            })
            .await?;
        Ok(all
            .into_iter()
            .filter_map(|container| container.image_id)
            .collect())
    }

    /// Removes an image by its id, with its last names, or one name of an image that has more. Without force: the Engine
    /// checks by itself that no container and no other image needs it. Images that it was built from are left.
    pub async fn remove_image(&self, name_or_id: &str) -> Result<Removed> {
        let options = RemoveImageOptionsBuilder::new()
            .force(false)
            .noprune(true)
            .build();
        let said = self
            .call("remove an image", REMOVE_LIMIT, |docker| {
                docker.remove_image(name_or_id, Some(options), None)
            })
            .await;
        match said {
            Ok(_) => Ok(Removed::Gone),
            Err(error) if error.is_not_found() => Ok(Removed::Gone),
            Err(Error::Refused {
                status: 409, message, ..
            }) => Ok(Removed::Kept(message)),
            Err(error) => Err(error),
        }
    }
}

fn image(said: ImageSummary) -> ImageHere {
    let named = |names: Vec<String>| {
        let mut names = names;
        names.retain(|name| !name.starts_with(NO_NAME) && !name.ends_with(&format!(":{NO_NAME}")));
        names
    };
    ImageHere {
        id: said.id,
        tags: named(said.repo_tags),
        digests: named(said.repo_digests),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_an_image_does_not_have_are_no_names() {
        let said: ImageSummary = serde_json::from_str(
            r#"{"Id": "sha256:1", "ParentId": "", "Created": 1, "Size": 1, "SharedSize": -1, "Containers": -1, "Labels": null,
                "RepoTags": ["<none>:<none>", "acme/web:<none>", "acme/web:v1"],
                "RepoDigests": ["<none>@<none>", "acme/web@sha256:2"]}"#,
        )
        .unwrap();
        let image = image(said);
        assert_eq!(image.tags, ["acme/web:v1"]);
        assert_eq!(image.digests, ["acme/web@sha256:2"]);
    }
}
