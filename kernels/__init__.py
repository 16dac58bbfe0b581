"""The fast operations under the model, one a folder: public function, plain reference, fast versions."""
