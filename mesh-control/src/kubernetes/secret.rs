//! The certificate authority's keys, in a Secret that all replicas share.

use std::collections::BTreeMap;

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Error};
use mesh_common::resource::MESH_NAMESPACE;

use crate::ca::Ca;

pub const CA_SECRET: &str = "mesh-ca";
const ROOT: &str = "root.pem";
const INTERMEDIATE: &str = "intermediate.pem";

/// The authority of the Secret, or a new one if there is none: whichever replica creates it first has made it for all.
pub async fn open_ca(client: &Client, trust_domain: &str, now: Timestamp) -> anyhow::Result<Ca> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), MESH_NAMESPACE);
    if let Some(secret) = secrets.get_opt(CA_SECRET).await.context("cannot read the Secret mesh-system/mesh-ca")? {
        return read(&secret, trust_domain, now);
    }
    let (ca, [root, intermediate]) = Ca::create(trust_domain, now)?;
    let value = |text: String| ByteString(text.into_bytes());
    let data = BTreeMap::from([(ROOT.to_owned(), value(root)), (INTERMEDIATE.to_owned(), value(intermediate))]);
    let metadata = ObjectMeta { name: Some(CA_SECRET.to_owned()), ..ObjectMeta::default() };
    let secret = Secret { metadata, data: Some(data), type_: Some("Opaque".to_owned()), ..Secret::default() };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!(
                trust_domain,
                "made the certificate authority of a new mesh, in the Secret mesh-system/mesh-ca"
            );
            Ok(ca)
        }
        Err(Error::Api(status)) if status.code == 409 => {
            let secret = secrets.get(CA_SECRET).await.context("cannot read the Secret mesh-system/mesh-ca")?;
            read(&secret, trust_domain, now)
        }
        Err(error) => Err(error).context("cannot create the Secret mesh-system/mesh-ca"),
    }
}

fn read(secret: &Secret, trust_domain: &str, now: Timestamp) -> anyhow::Result<Ca> {
    let text = |key: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        let value = value.with_context(|| format!("the Secret mesh-system/mesh-ca has no key {key}"))?;
        std::str::from_utf8(&value.0).with_context(|| format!("{key} of the Secret mesh-system/mesh-ca is not text"))
    };
    Ok(Ca::from_pem(text(ROOT)?, text(INTERMEDIATE)?, trust_domain, now)?)
}
