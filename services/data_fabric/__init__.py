"""cdn-data-fabric: tables from files, SQL over HTTP, and indexes that come and go by themselves."""
