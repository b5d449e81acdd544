//! Bad input is named, and costs nothing that worked.

use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, assert_echo, gets_through};
use tulle_integration::{TestMesh, manifest};
use tulle_world::Component;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_is_named_and_its_objects_keep_their_last_good_form() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    mesh.apply(
        "deny",
        &manifest::policy("no-web", "db", "DENY", &manifest::from_account("web")),
    );
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert!(!gets_through(web.namespace(), echo.address()).await);

    mesh.apply(
        "deny",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n  metadata: [broken\n",
    );
    let named = async || {
        mesh.text(&Component::Control, "/status")
            .await
            .contains("deny.yaml")
    };
    assert!(
        eventually(named).await,
        "the status names the file\n{}",
        mesh.logs()
    );
    let log = || mesh.log(&Component::Control);
    let logged = async || log().contains("deny.yaml") && log().contains("T0202");
    assert!(eventually(logged).await, "the log names file and code\n{}", log());
    assert!(
        !gets_through(web.namespace(), echo.address()).await,
        "the policy's last good form stays in force"
    );

    // Everything else goes on: another object of another file is taken.
    let late = mesh.pod("n1", "late").await;
    mesh.captured(&[&late]).await;
    assert_echo(late.namespace(), echo.address()).await;

    mesh.remove("deny");
    let again = eventually(async || gets_through(web.namespace(), echo.address()).await).await;
    assert!(again, "removing the file removes the policy");
}
