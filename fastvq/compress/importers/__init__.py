"""Models of other libraries as float graphs of ours; each importer is loaded when it is used."""
