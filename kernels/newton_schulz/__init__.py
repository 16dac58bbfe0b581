"""Newton-Schulz orthogonalisation, and the symmetric products that it is made of."""
